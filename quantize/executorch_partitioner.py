"""What XNNPACK's delegate takes of an ExecuTorch program: all that is stock, and int8 hard swish.

The stock partitioner takes hard swish in float only, so that an int8 network converts every feature
map to float and back around it. The delegate itself takes it between int8 values as well.
"""

from __future__ import annotations

from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.config.generic_node_configs import HardswishConfig
from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner


class _Hardswish(HardswishConfig):  # type: ignore[misc]
    def supported_precision_types(self) -> list[ConfigPrecisionType]:
        return [ConfigPrecisionType.FP32, ConfigPrecisionType.STATIC_QUANT]


_CONFIGS = [_Hardswish if it is HardswishConfig else it for it in ALL_PARTITIONER_CONFIGS]


class Partitioner(XnnpackPartitioner):  # type: ignore[misc]
    """The stock partitioner, but that hard swish between int8 values is int8."""

    def __init__(self) -> None:
        super().__init__(configs=_CONFIGS)
