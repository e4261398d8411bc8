"""The whole way: export, inspect, evaluate, push, probe, select, activate."""

from edgekit.pipeline.quantizing import QuantizeOutcome, quantize

__all__ = ["QuantizeOutcome", "quantize"]
