"""Weights that a script made, kept until the script changes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor, nn

CACHE = Path(__file__).resolve().parents[1] / ".cache"


def weights(name: str, script: Path, make: Callable[[], nn.Module]) -> Mapping[str, Tensor]:
    """The state dict of the module that ``make`` gives, from the cache where there is one.

    Args:
        name: tells the modules of one script apart.
        script: the file that makes it; its content and torch's version are the key.
    """
    import torch

    made_by = script.read_bytes() + torch.__version__.encode()
    path = CACHE / "weights" / f"{name}-{hashlib.sha256(made_by).hexdigest()[:16]}.pt"
    if not path.is_file():
        content = io.BytesIO()
        torch.save(make().state_dict(), content)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content.getvalue())
    state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state
