"""From one PyTorch model to the INT8 file that is fastest on your device and still accurate.

Importing this package loads no framework: everything below is resolved on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekit.config import ProjectConfig as ProjectConfig
    from edgekit.registry import RuntimeEntry as RuntimeEntry
