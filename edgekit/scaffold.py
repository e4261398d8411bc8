"""The edgekit.toml that ``edgekit init`` writes: what the folder shows, commented."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path

from edgekit.config_values import default_model_name, parse_shape
from edgekit.errors import UsageError

FACTORIES = (
    "build",
    "build_model",
    "get_model",
    "make_model",
    "create_model",
    "load_model",
    "model",
)
_SETS = {
    "calib": ("calib", "calibration"),
    "eval": ("choose", "eval", "val", "validation"),
    "report": ("test", "report"),
}
_PARENTS = ("photos", "data", "images", "dataset", ".")


@dataclass(frozen=True, slots=True)
class Found:
    """What a project folder holds; empty where nothing was found."""

    model: str = ""
    has_example_inputs: bool = False
    calib: str = ""
    eval: str = ""
    report: str = ""


def look_around(folder: Path, model: str | None = None) -> Found:
    """Find the model's factory and the sample folders in ``folder``. Runs no code of the user's.

    Args:
        folder: the project's folder.
        model: the MODEL where the user has named it.

    Raises:
        UsageError: no model was named, and none or more than one was found.
    """
    if model is None:
        candidates = _factories(folder)
        if not candidates:
            raise UsageError(
                f"No Python file in {folder} has a function such as {', '.join(FACTORIES[:3])}.",
                remedy="Name the model: --model file.py:function, or --model torchvision:NAME.",
            )
        if len(candidates) > 1:
            raise UsageError(
                f"More than one model was found in {folder}: {', '.join(candidates)}.",
                remedy=f"Name the one you mean: --model {candidates[0]}",
            )
        model = candidates[0]
    file = folder / model.rpartition(":")[0]
    has_inputs = file.suffix == ".py" and "example_inputs" in _functions(file)
    sets = {key: _first_folder(folder, names) for key, names in _SETS.items()}
    return Found(model, has_inputs, **sets)


def render(
    found: Found,
    *,
    weights: str | None = None,
    inputs: list[str] | None = None,
    calib: str | None = None,
    eval_set: str | None = None,
) -> str:
    """The text of an edgekit.toml for this model.

    Raises:
        UsageError: an input shape is wrong.
    """
    kind = found.model.partition(":")[0]
    knows_inputs = (
        found.has_example_inputs or kind in ("torchvision", "timm") or found.model.endswith(".pt2")
    )
    shape = _shape((inputs or ["1x3x224x224"])[0])
    report = found.report or "photos/test"
    return _TEMPLATE.format(
        name=_text(default_model_name(found.model)),
        source=_text(found.model),
        weights=_entry("weights", _text(weights or "weights.pth"), active=bool(weights)),
        input=_entry(
            "input",
            "[" + ", ".join(_text(text) for text in inputs or ["1x3x224x224"]) + "]",
            active=bool(inputs) or not knows_inputs,
        ),
        resize=max(1, round(shape[-2] / 0.875)) if len(shape) == 4 else 256,
        crop=f"[{shape[-2]}, {shape[-1]}]" if len(shape) == 4 else "[224, 224]",
        calib=_text(calib or found.calib or "photos/calib"),
        eval=_text(eval_set or found.eval or "photos/choose"),
        report=_entry("report", _text(report), active=bool(found.report)),
    )


def _factories(folder: Path) -> list[str]:
    return [
        f"{file.name}:{name}"
        for file in sorted(folder.glob("*.py"))
        for name in FACTORIES
        if name in _functions(file)
    ]


def _functions(file: Path) -> set[str]:
    """Names of the functions at the top level of a Python file; empty if it cannot be read."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return set()
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def _first_folder(folder: Path, names: tuple[str, ...]) -> str:
    for parent in _PARENTS:
        for name in names:
            if (folder / parent / name).is_dir():
                return (Path(parent) / name).as_posix()
    return ""


def _shape(text: str) -> tuple[int, ...]:
    try:
        return parse_shape(text)
    except ValueError as error:
        raise UsageError(f"--input: {error}") from error


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)  # a JSON string is a TOML basic string


def _entry(key: str, value: str, *, active: bool) -> str:
    return f"{'' if active else '# '}{key} = {value}"


_TEMPLATE = """\
# edgekit.toml: `edgekit run` in this folder does all of it. Paths are relative to this file.
schema = 1

[model]
name = {name}
# file.py:factory, package.module:factory, torchvision:NAME, timm:NAME or x.pt2
source = {source}
# A state dict to load into the model (weights_only).
{weights}
# Shapes of the inputs, batch dimension first; or a function that returns example inputs.
{input}
# example = "model.py:example_inputs"

[preprocess]
# From an image file to the model's input: resize, crop, (pixel * scale - mean) / std.
# These are ImageNet's usual values: set what your model was trained with.
resize = {resize} # the shorter side, in pixels
crop = {crop} # height and width of a centre crop
scale = 0.00392156862745098 # 1 / 255
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
color = "RGB" # or "BGR", "L"

[data]
# Folders of images (sub-folders are classes), an .npz, or file.py:function. No sample in two sets.
calib = {calib} # 50 or more typical samples: activation ranges come from here
eval = {eval} # at least 1 / max_drop samples: decides what is accurate enough
# Looked at once, for the figures that are reported; never used to decide.
{report}
# Samples for a short quantization-aware training where nothing else keeps the budget; no labels.
# train = "photos/train"
metric = "auto" # top1 with labels, else agreement with the float model

[quantize]
runtimes = ["executorch", "tflite", "onnx", "torchscript"]
# Default: fp32, and dynamic_wi8_afp32 for transformers, static_wi8_ai8 for other models.
# recipes = ["fp32", "static_wi8_ai8"]
bundle = "bundle"
timeout_s = 900 # per export
memory_mb = 8192 # per export

[budget]
max_drop = 0.01 # accuracy that may be lost on the device; 0.01 is one point
# max_size_mb = 10.0
# max_rss_mb = 300.0

[probe]
# threads = [1, 2] # default: those of the device's profile, as far as it has CPUs
processes = 5 # fresh processes per artifact and thread count
budget_s = 1.0 # seconds of timed runs per process
objective = "p50" # or "p90"

[targets.local] # this machine
transport = "local"
"""
