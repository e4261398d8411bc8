"""The whole way: export, inspect, evaluate, push, probe, select, activate."""

from edgekit.pipeline.deploying import (
    DeployOutcome,
    RunOutcome,
    all_failures,
    deploy,
    probe,
    run,
)
from edgekit.pipeline.quantizing import QuantizeOutcome, quantize

__all__ = [
    "DeployOutcome",
    "QuantizeOutcome",
    "RunOutcome",
    "all_failures",
    "deploy",
    "probe",
    "quantize",
    "run",
]
