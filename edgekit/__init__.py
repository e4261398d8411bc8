"""From one PyTorch model to the INT8 file that is fastest on your device and still accurate.

Importing this package loads no framework: everything below is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.config import ProjectConfig as ProjectConfig
    from edgekit.registry import RuntimeEntry as RuntimeEntry

    __version__: str

_HOMES = {
    "ProjectConfig": "edgekit.config",
    "RuntimeEntry": "edgekit.registry",
}

__all__ = sorted(_HOMES)


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
