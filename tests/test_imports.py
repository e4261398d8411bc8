"""Who may import whom (DESIGN: imports go one way), read from the source without running it."""

from __future__ import annotations

import ast
import functools
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Literal

import pytest

When = Literal["ever", "run", "load"]

ROOT = Path(__file__).resolve().parents[1]
TREES = {"edgekit": "edgekit", "quantize": "edgekit.quantize", "targets": "edgekit.targets"}
FRAMEWORKS = {
    "ai_edge_litert",
    "ai_edge_quantizer",
    "dask",
    "duckdb",
    "executorch",
    "jax",
    "jinja2",
    "keras",
    "litert_torch",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "paramiko",
    "plotly",
    "tensorflow",
    "timm",
    "torch",
    "torchao",
    "torchvision",
    "transformers",
}

# Lowest first; a package stands for all its modules. What is not named is at FOUNDATION.
LAYERS = {
    "edgekit.types": 0,
    "edgekit.errors": 0,
    "edgekit.sources": 2,
    "edgekit.quantize": 2,
    "edgekit.targets": 2,
    "edgekit.select": 3,
    "edgekit.results": 3,
    "edgekit.pipeline": 4,
    "edgekit.report": 4,
    "edgekit.project": 5,
    "edgekit": 5,
    "edgekit.cli": 6,
    "edgekit.__main__": 6,
}
FOUNDATION = 1
APART = (
    {"edgekit.sources", "edgekit.quantize", "edgekit.targets"},
    {"edgekit.pipeline", "edgekit.report"},
)


def modules() -> dict[str, Path]:
    """Module name -> file, for all three trees; the links in edgekit/ are not followed."""
    found = {}
    for folder, package in TREES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            if "__pycache__" not in parts and not _through_link(path):
                found[name] = path
    return found


def _through_link(path: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(ROOT))


MODULES = modules()


def is_agent(module: str) -> bool:
    return module.startswith("edgekit.targets.agent.")


@functools.cache
def imports(module: str, when: When = "ever") -> tuple[tuple[str, int], ...]:
    """What a module imports, as (module, line); ``from edgekit import x`` is edgekit.x where that
    is a module. ``run``: without what is under TYPE_CHECKING; ``load``: without functions too.
    """
    found = []
    for node in nodes(ast.parse(MODULES[module].read_text(encoding="utf-8")), when):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append((inner if inner in MODULES else node.module, node.lineno))
    return tuple(found)


def nodes(node: ast.AST, when: When) -> Iterator[ast.AST]:
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if when != "ever" and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children = node.orelse
    for child in children:
        if when == "load" and isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        ):
            continue
        yield child
        yield from nodes(child, when)


def unit(module: str) -> str:
    """What LAYERS speaks of: the module directly below edgekit that ``module`` is or is in."""
    return ".".join(module.split(".")[:2])


def layer(module: str) -> int:
    return LAYERS.get(unit(module), FOUNDATION)


def refusal(importer: str, imported: str) -> str:
    """Why the import is against the rule; empty where it is not."""
    a, b = unit(importer), unit(imported)
    if a == b or imported.split(".")[0] != "edgekit":
        return ""
    if layer(importer) < layer(imported):
        return f"{importer} is below {imported}"
    if any(a in group and b in group for group in APART):
        return f"{a} and {b} never import each other"
    return ""


@pytest.mark.parametrize(
    ("importer", "imported", "refused"),
    [
        ("edgekit.stats", "edgekit.select", True),
        ("edgekit.types", "edgekit.files", True),
        ("edgekit.bundle", "edgekit.quantize.base", True),
        ("edgekit.quantize.base", "edgekit.targets.measure", True),
        ("edgekit.pipeline", "edgekit.report.html", True),
        ("edgekit.report.html", "edgekit.pipeline", True),
        ("edgekit.results", "edgekit", True),
        ("edgekit.select", "edgekit.stats", False),
        ("edgekit.bundle", "edgekit.files", False),
        ("edgekit.cli.run", "edgekit.pipeline", False),
        ("edgekit.quantize.to_onnx", "edgekit.quantize.base", False),
        ("edgekit.bundle", "numpy", False),
    ],
)
def test_the_rule_itself(importer: str, imported: str, refused: bool) -> None:
    assert bool(refusal(importer, imported)) is refused


def test_the_layers_name_what_exists() -> None:
    missing = set(LAYERS) - set(MODULES)
    assert not missing


def test_imports_go_one_way() -> None:
    broken = [
        f"{MODULES[module]}:{line}: {reason}"
        for module in MODULES
        for imported, line in imports(module)
        if (reason := refusal(module, imported))
    ]
    assert not broken, "\n".join(broken)


def test_no_relative_imports() -> None:
    broken = [
        f"{path}:{node.lineno}"
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert not broken


def test_what_is_imported_exists() -> None:
    """A misspelt module inside a function would otherwise be found by a user."""
    missing = [
        f"{MODULES[module]}:{line}: {imported}"
        for module in MODULES
        for imported, line in imports(module)
        if imported.split(".")[0] == "edgekit" and imported not in MODULES
    ]
    assert not missing


def reached_at_import(roots: list[str]) -> dict[str, str]:
    """Every module that importing ``roots`` loads -> the one that loads it."""
    reached = dict.fromkeys(roots, "")
    queue = list(roots)
    while queue:
        module = queue.pop()
        for imported, _ in imports(module, "load"):
            parents = [imported.rsplit(".", n)[0] for n in range(imported.count(".") + 1)]
            for name in parents:
                if name not in reached:
                    reached[name] = module
                    if name in MODULES:
                        queue.append(name)
    return reached


def test_light_modules_load_no_framework() -> None:
    """The host application and the device drivers load a framework only where they call it."""
    light = [name for name in MODULES if unit(name) != "edgekit.quantize" and not is_agent(name)]
    loaded = {
        name: by
        for name, by in reached_at_import(light).items()
        if name.split(".")[0] in FRAMEWORKS
    }
    assert not loaded


@pytest.mark.parametrize(
    "statement",
    [
        "import edgekit",
        "import edgekit; [getattr(edgekit, n) for n in dir(edgekit)]",
        "import edgekit.cli, sys; sys.argv = ['edgekit', '--help']\n"
        "try: edgekit.cli.main()\nexcept SystemExit: pass",
    ],
)
def test_starting_loads_no_framework(statement: str, tmp_path: Path) -> None:
    code = f"import sys\n{statement}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert "edgekit" in loaded
    assert not loaded & FRAMEWORKS


def test_the_agent_stands_alone() -> None:
    """On the device there is the standard library, a runtime, and the files beside the agent."""
    folder = ROOT / "targets" / "agent"
    beside = {path.stem for path in folder.glob("*.py")}
    runtimes = {
        "agent": set(),
        "runner_core": {"numpy"},
        "run_tflite": {"numpy", "ai_edge_litert"},
        "run_onnx": {"numpy", "onnxruntime"},
        "run_torchscript": {"numpy", "torch"},
    }
    broken = [
        f"{MODULES[module]}:{line}: {imported}"
        for module in MODULES
        if is_agent(module)
        for imported, line in imports(module, "run")
        if (root := imported.split(".")[0]) not in sys.stdlib_module_names
        and root not in beside
        and root not in runtimes.get(module.rsplit(".", 1)[1], set())
    ]
    assert not broken
    agent = {name.split(".")[0] for name, _ in imports("edgekit.targets.agent.agent", "run")}
    assert agent <= sys.stdlib_module_names, "agent.py is one file and needs nothing else"


def test_the_agent_is_python_3_9() -> None:
    for module, path in MODULES.items():
        if is_agent(module):
            ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


def declared() -> set[str]:
    """The distributions that pyproject.toml asks for, in any extra, with normalised names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = itertools.chain(project["dependencies"], *extras)
    return {normalised(re.split(r"[\[<>=!~ ;]", requirement)[0]) for requirement in wanted}


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_every_third_party_import_is_declared() -> None:
    """What only comes along with something else may be gone with its next version."""
    owners = packages_distributions()
    asked = declared()
    undeclared = {
        f"{module} imports {root}"
        for module in MODULES
        for imported, _ in imports(module, "run")
        if (root := imported.split(".")[0]) != "edgekit"
        and root not in sys.stdlib_module_names
        and not (is_agent(module) and (MODULES[module].parent / f"{root}.py").exists())
        and not {normalised(name) for name in owners.get(root, [root])} & asked
    }
    assert not undeclared
