"""``file.py:factory`` and ``package.module:factory``: a model that the user's own code builds."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgekit.errors import SourceError
from edgekit.sources.base import (
    LoadedModel,
    SourceSpec,
    as_inputs,
    finish,
    load_weights,
    random_inputs,
)
from edgekit.sources.user_code import FileRecorder, user_code
from edgekit.suggest import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn


def load(spec: SourceSpec) -> LoadedModel:
    """Call the factory without arguments and put the module in eval mode.

    Example inputs come from ``spec.inputs``, else ``spec.example``, else from a function
    ``example_inputs`` beside the factory.

    Raises:
        SourceError: no such file, module or name, the user's code raised, or it gave no module.
    """
    where, _, attribute = spec.source.rpartition(":")
    recorder = FileRecorder(spec.root, _folder(where, spec.root))
    with recorder.recording():
        module_code = _import(where, spec.root)
        module = _build(spec, module_code, attribute)
        if spec.weights is not None:
            load_weights(module, spec.weights, unsafe=spec.unsafe_weights)
        module.eval()
        inputs = _example_inputs(spec, module_code, where)
        loaded = finish(spec, module, inputs, ())
    weights = (spec.weights.resolve(),) if spec.weights is not None else ()
    return replace(loaded, dependencies=tuple(sorted({*recorder.files(), *weights})))


def _folder(where: str, root: Path) -> Path:
    return (root / where).parent if where.endswith(".py") else root


def _import(where: str, root: Path) -> ModuleType:
    if where.endswith(".py"):
        return _import_file(root / where, where, root)
    _make_importable(root)
    with user_code(f"Importing {where}", root):
        return importlib.import_module(where)


def _import_file(file: Path, shown: str, root: Path) -> ModuleType:
    """Run a file as a module of its own, with its folder importable as Python itself would do."""
    if not file.is_file():
        raise SourceError(f"There is no file {file}.")
    # Two files called model.py must not be taken for each other.
    name = f"_edgekit_user_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}"
    found = importlib.util.spec_from_file_location(name, file)
    if found is None or found.loader is None:
        raise SourceError(f"{file} is not a Python file.")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    _make_importable(file.parent)
    with user_code(f"Running {shown}", root):
        found.loader.exec_module(module)
    return module


def _make_importable(folder: Path) -> None:
    """Put ``folder`` on the path for good: factories often import only when they are called."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _attribute(module: ModuleType, name: str, shown: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [key for key in vars(found) if not key.startswith("_")]
            guess = did_you_mean(part, public)
            own = [key for key in public if callable(vars(found)[key])]
            raise SourceError(
                f"{shown} has no {name!r}.",
                remedy=guess or (f"It has: {', '.join(own[:8])}." if own else ""),
            )
        found = getattr(found, part)
    return found


def _build(spec: SourceSpec, code: ModuleType, attribute: str) -> nn.Module:
    from torch import nn

    where = spec.source.rpartition(":")[0]
    found = _attribute(code, attribute, where)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise SourceError(
            f"{spec.source} is a {type(found).__name__}, not a function that builds a model."
        )
    with user_code(spec.source, spec.root):
        built = found()
    if not isinstance(built, nn.Module):
        raise SourceError(
            f"{spec.source} returned a {type(built).__name__}, not a torch.nn.Module.",
            remedy="The function is called without arguments and must return the model.",
        )
    return built


def _example_inputs(spec: SourceSpec, code: ModuleType, where: str) -> tuple[Tensor, ...]:
    if spec.inputs:
        return random_inputs(spec.inputs)
    name = spec.example or f"{where}:example_inputs"
    example_where, _, attribute = name.rpartition(":")
    if spec.example and example_where != where:
        code = _import(example_where, spec.root)
    elif not spec.example and not hasattr(code, "example_inputs"):
        raise SourceError(
            f"The shape of the model's inputs is not known: {where} has no example_inputs().",
            remedy="Give --input 1x3x224x224 (input = [...] under [model]), or add a function "
            "example_inputs() that returns a tuple of tensors.",
        )
    function = _attribute(code, attribute, example_where)
    with user_code(name, spec.root):
        value = function() if callable(function) else function
    return as_inputs(value, name)
