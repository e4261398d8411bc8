"""What every model source takes and gives, and what they have in common.

A source is a function ``load(spec: SourceSpec) -> LoadedModel`` in a file of its own, named on one
line of :mod:`edgekit.registry`.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import MissingExtra, SourceError
from edgekit.sources.user_code import user_code

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """What to load; ``source`` and ``example`` are relative to ``root``.

    ``inputs`` are shapes with the batch dimension first, or empty.
    """

    source: str
    root: Path
    name: str
    weights: Path | None = None
    unsafe_weights: bool = False
    inputs: tuple[tuple[int, ...], ...] = ()
    example: str = ""


@dataclass(frozen=True)
class LoadedModel:
    """A module in eval mode and inputs that it accepts (batch dimension first).

    ``dependencies`` are the user's own files that loading read: code, weights and whatever the
    factory opened; when none of them changed, neither did the model. ``notes`` are for the user.
    """

    module: nn.Module
    example_inputs: tuple[Tensor, ...]
    name: str
    input_names: tuple[str, ...]
    weights_sha256: str
    dependencies: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def finish(
    spec: SourceSpec,
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    dependencies: Iterable[Path],
    notes: tuple[str, ...] = (),
) -> LoadedModel:
    """Run the model once, to know that it and its inputs fit, and describe it.

    Raises:
        SourceError: the model does not run on these inputs.
    """
    import torch

    names = _input_names(module, len(example_inputs))
    shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in example_inputs)
    with user_code(f"{spec.source} on inputs of shape {shapes}", spec.root), torch.no_grad():
        module(*example_inputs)
    return LoadedModel(
        module=module,
        example_inputs=example_inputs,
        name=spec.name,
        input_names=names,
        weights_sha256=hash_weights(module.state_dict()),
        dependencies=tuple(sorted({path.resolve() for path in dependencies})),
        notes=notes,
    )


def random_inputs(shapes: Iterable[tuple[int, ...]]) -> tuple[Tensor, ...]:
    """Reproducible standard-normal float32 tensors of these shapes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def as_inputs(value: object, origin: str) -> tuple[Tensor, ...]:
    """A tensor or a sequence of tensors, as a tuple; ``origin`` names it in the error."""
    import torch

    items = (value,) if isinstance(value, torch.Tensor) else value
    if (
        not isinstance(items, (tuple, list))
        or not items
        or not all(isinstance(item, torch.Tensor) and item.dim() > 0 for item in items)
    ):
        raise SourceError(
            f"{origin} must give a tensor or a tuple of tensors, batch dimension first; "
            f"it gave {type(value).__name__}.",
            remedy="Return for example (torch.randn(1, 3, 224, 224),).",
        )
    return tuple(item.detach().cpu() for item in items)


def load_weights(module: nn.Module, path: Path, *, unsafe: bool) -> None:
    """Load a state dict into the module, strictly.

    A checkpoint that holds it under ``state_dict``, ``model_state_dict`` or ``model``, and the
    ``module.`` prefix of DataParallel, are understood. ``unsafe`` allows a pickle to run code.

    Raises:
        SourceError: no such file, not a state dict, needs ``unsafe``, or the keys do not fit.
    """
    import pickle

    import torch

    if not path.is_file():
        raise SourceError(f"The weights file {path} does not exist.")
    try:
        if path.suffix == ".safetensors":
            found = _load_safetensors(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=not unsafe)
    except MissingExtra:
        raise
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path} holds more than tensors, and loading it could run code: {_first_line(error)}",
            remedy="If you trust the file, allow it: --unsafe-weights, or "
            "unsafe_weights = true under [model].",
        ) from error
    except Exception as error:
        raise SourceError(f"{path} cannot be read as weights: {_first_line(error)}") from error
    if isinstance(found, torch.nn.Module):
        found = found.state_dict()
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found:
        raise SourceError(f"{path} is not a state dict but a {type(found).__name__}.")
    if all(isinstance(key, str) and key.startswith("module.") for key in found):
        found = {key.removeprefix("module."): value for key, value in found.items()}
    try:
        result = module.load_state_dict(found, strict=False)
    except RuntimeError as error:
        detail = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise SourceError(f"The weights in {path} do not fit the model: {detail}") from error
    wrong = [f"missing {key}" for key in result.missing_keys]
    wrong += [f"unexpected {key}" for key in result.unexpected_keys]
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise SourceError(
            f"The weights in {path} do not fit the model: {', '.join(wrong[:4])}{more}.",
            remedy="Check that the file belongs to this architecture and its options.",
        )


def _load_safetensors(path: Path) -> object:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingExtra("safetensors", "timm") from error
    return load_file(path)


def hash_weights(state: dict[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor, in the order of the names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _input_names(module: nn.Module, count: int) -> tuple[str, ...]:
    forward: Callable[..., object] = module.forward
    named: list[str] = []
    for parameter in inspect.signature(forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            named += [f"input_{index}" for index in range(len(named), count)]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            named.append(re.sub(r"\W", "_", parameter.name))
    if len(named) < count:
        raise SourceError(
            f"There are {count} example inputs, but the model's forward takes {len(named)}.",
            remedy="Give one --input per argument of forward, in its order.",
        )
    return tuple(named[:count])


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
