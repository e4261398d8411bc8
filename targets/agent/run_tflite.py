"""Runs a .tflite file with LiteRT's interpreter and XNNPACK, by the contract in runner_core."""

# ruff: noqa: B905  (zip's strict= came with Python 3.10)

from __future__ import annotations

import argparse
import base64
import re
import sys
from typing import TYPE_CHECKING, Any, Dict, List, Sequence, Tuple

if TYPE_CHECKING:  # the same file, under the name that the type checker knows it by
    from edgekit.targets.agent import runner_core
else:
    import runner_core


def _in_model_order(interpreter: Any) -> Tuple[List[Dict[str, Any]], List[Dict[str, Any]]]:
    """Input and output details in the order of the source model's arguments and results.

    A converter may order the subgraph's tensors differently, and a signature is a sorted map; but
    its keys are numbered (args_0, output_10), so numbers, not letters, restore the order.
    """
    inputs = list(interpreter.get_input_details())
    outputs = list(interpreter.get_output_details())
    signatures = list(interpreter.get_signature_list())
    if len(signatures) == 1:
        runner = interpreter.get_signature_runner(signatures[0])
        inputs = _by_number(runner.get_input_details(), inputs)
        outputs = _by_number(runner.get_output_details(), outputs)
    return inputs, outputs


def _by_number(
    named: Dict[str, Dict[str, Any]], fallback: List[Dict[str, Any]]
) -> List[Dict[str, Any]]:
    numbers = {}
    for key, detail in named.items():
        match = re.fullmatch(r"(?:args|output)_(\d+)", key)
        if match is None:
            return fallback
        numbers[int(match.group(1))] = dict(detail, name=key)
    return [numbers[number] for number in sorted(numbers)]


class TfliteBackend(runner_core.Backend):
    def __init__(self, interpreter: Any) -> None:
        interpreter.allocate_tensors()
        self._interpreter = interpreter
        inputs, self._outputs = _in_model_order(interpreter)
        self._indices = [detail["index"] for detail in inputs]
        self.inputs = [
            runner_core.Tensor(detail["name"], detail["dtype"].__name__, detail["shape"])
            for detail in inputs
        ]
        self._arrays: List[Any] = []

    def bind(self, arrays: Sequence[Any]) -> None:
        self._arrays = list(arrays)

    def invoke(self) -> None:
        for index, array in zip(self._indices, self._arrays):
            self._interpreter.set_tensor(index, array)
        self._interpreter.invoke()

    def outputs(self) -> List[Tuple[str, Any]]:
        return [
            (detail["name"], self._interpreter.get_tensor(detail["index"]))
            for detail in self._outputs
        ]


class TfliteRunner(runner_core.Runner):
    name = "tflite"

    def version(self) -> str:
        from importlib.metadata import version

        import ai_edge_litert.interpreter  # noqa: F401  (the import is the test)

        return version("ai-edge-litert")

    def selftest(self) -> None:
        import numpy as np
        from ai_edge_litert.interpreter import Interpreter

        backend = TfliteBackend(
            Interpreter(model_content=base64.b64decode(SELFTEST_MODEL), num_threads=1)
        )
        backend.bind([np.ones(tensor.shape, tensor.dtype) for tensor in backend.inputs])
        backend.invoke()
        ((_, result),) = backend.outputs()
        if result.tolist() != [[4.0, 4.0]]:
            raise RuntimeError("a 1x4 by 4x2 product of ones gave %s" % result.tolist())

    def load(
        self, args: argparse.Namespace, specs: List[runner_core.Tensor]
    ) -> runner_core.Backend:
        from ai_edge_litert.interpreter import Interpreter

        return TfliteBackend(Interpreter(model_path=args.model, num_threads=args.threads))


# litert_torch.convert of nn.Linear(4, 2) with weights 1 and bias 0.
SELFTEST_MODEL = (
    "HAAAAFRGTDMUACAABAAIAAwAEAAUAAAAGAAcABQAAAADAAAAPAAAADAAAABIAQAADAAAALQAAAAwAAAABgAAAEADAA"
    "A8AwAArAIAADQDAAAIAQAAyAAAAAEAAAA8AQAAAQAAANwBAAABAAAAEAAAAAAACgAQAAwACAAEAAoAAAAMAAAAHAAA"
    "ACAAAAAPAAAAc2VydmluZ19kZWZhdWx0AAEAAAAUAAAAAQAAACgAAAAIAAwACAAEAAgAAAACAAAABAAAAAgAAABvdX"
    "RwdXRfMAAAAADm/f//BAAAAAYAAABhcmdzXzAAAAIAAABIAAAABAAAAMj///8IAAAABQAAABcAAABrZWVwX3N0YWJs"
    "ZWhsb19jb25zdGFudAAu/v//BAAAAAQAAAB0cnVlCAAMAAQACAAIAAAACAAAAAQAAAATAAAAbWluX3J1bnRpbWVfdm"
    "Vyc2lvbgBq/v//BAAAABAAAAAyLjAuMAAAAAAAAAAAAAAADwAAAE1MSVIgQ29udmVydGVkLgAAAA4AGAAEAAgADAAQ"
    "ABQADgAAADgAAAAsAAAAIAAAABQAAAAEAAAABAAAAG1haW4AAAAAAQAAADQAAAABAAAAAgAAAAEAAAAAAAAAAwAAAG"
    "ABAADAAAAAcAAAAAAADgAWAAAACAAMAAcAEAAOAAAAAAAACCgAAAAcAAAAEAAAAAAACgAIAAAAAAAHAAoAAAAAAAAB"
    "AQAAAAIAAAADAAAAAAAAAAEAAAD/////DAAQAAsAAAAMAAQADAAAAAkAAAAAAAAJBQAAAC7///8AAAABNAAAAAMAAA"
    "AIAAAANAAAAB8AAABzZXJ2aW5nX2RlZmF1bHRfb3V0cHV0XzBfb3V0cHV0AAIAAAABAAAAAgAAABz///96////AAAA"
    "ATQAAAACAAAACAAAADgAAAAfAAAAdG9yY2gubm4ubW9kdWxlcy5saW5lYXIuTGluZWFyOwACAAAAAgAAAAQAAAAEAA"
    "YABAAAAAAABgAIAAQABgAAAAQAAAAgAAAAAACAPwAAgD8AAIA/AACAPwAAgD8AAIA/AACAPwAAgD8AABYAGAAIAAAA"
    "DAAQABQAAAAAAAAABwAWAAAAAAAAASwAAAABAAAACAAAACwAAAAWAAAAc2VydmluZ19kZWZhdWx0X2FyZ3NfMAAAAg"
    "AAAAEAAAAEAAAA/P///wQABAAEAAAA"
)

if __name__ == "__main__":
    sys.exit(runner_core.main(TfliteRunner()))
