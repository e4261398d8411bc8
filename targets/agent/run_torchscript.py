"""Runs a TorchScript .pt file (legacy) with torch, by the contract in runner_core.

A TorchScript file does not state its input shapes, so ``--spec`` is required. ``--engine`` is the
engine of quantized operators: qnnpack by default, because that is what ARM devices have, and a file
calibrated for one engine can be wrong under another.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import TYPE_CHECKING, Any, List, Sequence, Tuple

if TYPE_CHECKING:  # the same file, under the name that the type checker knows it by
    from edgekit.targets.agent import runner_core
else:
    import runner_core


def _flatten(value: Any) -> List[Any]:
    """The tensors of a forward's result, in order: a tensor, or (nested) tuples, lists or dicts."""
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in _flatten(item)]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _flatten(item)]
    return [value]


class TorchScriptBackend(runner_core.Backend):
    def __init__(self, module: Any, inputs: List[runner_core.Tensor], mode: Any) -> None:
        self._module = module
        self._mode = mode  # inference mode ends when this object is collected
        self.inputs = inputs
        self._arguments: List[Any] = []
        self._result: Any = None

    def bind(self, arrays: Sequence[Any]) -> None:
        import torch

        self._arguments = [torch.from_numpy(array) for array in arrays]

    def invoke(self) -> None:
        self._result = self._module(*self._arguments)

    def outputs(self) -> List[Tuple[str, Any]]:
        tensors = _flatten(self._result)
        return [("output_%d" % i, tensor.contiguous().numpy()) for i, tensor in enumerate(tensors)]


class TorchScriptRunner(runner_core.Runner):
    name = "torchscript"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--engine", choices=["qnnpack", "x86", "fbgemm", "onednn"])

    def version(self) -> str:
        import torch

        return str(torch.__version__)

    def selftest(self) -> None:
        import torch

        image, kernel = torch.ones(1, 4, 8, 8), torch.ones(4, 4, 3, 3)
        with torch.inference_mode():
            total = torch.nn.functional.conv2d(image, kernel).sum().item()
        if total != 4 * 36 * 36:
            raise RuntimeError("a convolution of ones gave %s" % total)

    def load(
        self, args: argparse.Namespace, specs: List[runner_core.Tensor]
    ) -> runner_core.Backend:
        import torch

        if not specs:
            raise runner_core.Failure(runner_core.USAGE, "a TorchScript model needs --spec")
        torch.set_num_threads(args.threads)
        torch.set_num_interop_threads(1)
        engine, known = args.engine or "qnnpack", torch.backends.quantized.supported_engines
        if engine in known:
            torch.backends.quantized.engine = engine
        elif args.engine:
            raise runner_core.Failure(
                runner_core.USAGE, "no quantized engine %s here, only %s" % (engine, known)
            )
        mode = torch.inference_mode()
        mode.__enter__()  # for good: the process exists for this one model
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is deprecated")
            module = torch.jit.load(args.model, map_location="cpu")
        module.eval()
        return TorchScriptBackend(module, specs, mode)


if __name__ == "__main__":
    sys.exit(runner_core.main(TorchScriptRunner()))
