"""From one PyTorch model to the INT8 file that is fastest on your device and still accurate.

Importing this package loads no framework: everything below is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.bundle import Bundle as Bundle
    from edgekit.config import ProjectConfig as ProjectConfig
    from edgekit.errors import EdgekitError as EdgekitError
    from edgekit.project import Project as Project
    from edgekit.registry import RuntimeEntry as RuntimeEntry
    from edgekit.types import Artifact as Artifact
    from edgekit.types import Budget as Budget
    from edgekit.types import Manifest as Manifest
    from edgekit.types import Preprocess as Preprocess
    from edgekit.types import ProbeResult as ProbeResult
    from edgekit.types import Selection as Selection
    from edgekit.types import Target as Target

    __version__: str

_HOMES = {
    "Artifact": "edgekit.types",
    "Budget": "edgekit.types",
    "Bundle": "edgekit.bundle",
    "EdgekitError": "edgekit.errors",
    "Manifest": "edgekit.types",
    "Preprocess": "edgekit.types",
    "ProbeResult": "edgekit.types",
    "Project": "edgekit.project",
    "ProjectConfig": "edgekit.config",
    "RuntimeEntry": "edgekit.registry",
    "Selection": "edgekit.types",
    "Target": "edgekit.types",
}

__all__ = [
    "Artifact",
    "Budget",
    "Bundle",
    "EdgekitError",
    "Manifest",
    "Preprocess",
    "ProbeResult",
    "Project",
    "ProjectConfig",
    "RuntimeEntry",
    "Selection",
    "Target",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("edgekit")
        except PackageNotFoundError:  # a source tree that is not installed
            return "0+unknown"
    if name in _HOMES:
        from importlib import import_module

        found: object = getattr(import_module(_HOMES[name]), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'edgekit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
