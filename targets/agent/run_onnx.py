"""Runs an .onnx file with ONNX Runtime's CPU provider, by the contract in runner_core."""

# ruff: noqa: B905  (zip's strict= came with Python 3.10)

from __future__ import annotations

import argparse
import base64
import platform
import sys
from typing import TYPE_CHECKING, Any, Dict, List, Sequence, Tuple

if TYPE_CHECKING:  # the same file, under the name that the type checker knows it by
    from edgekit.targets.agent import runner_core
else:
    import runner_core

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def sums_in_16_bits(machine: str, cpuinfo: str) -> bool:
    """Whether ONNX Runtime adds pairs of uint8 x int8 products in 16 bits there, which saturate.

    It does on x86 CPUs without VNNI. Args: what ``platform.machine()`` says, and the text of
    /proc/cpuinfo, empty where there is none.
    """
    return machine.lower() in ("x86_64", "amd64", "i686", "x86") and "_vnni" not in cpuinfo


def _session(model: Any, threads: int) -> Any:
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail

    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            cpuinfo = file.read()
    except OSError:
        cpuinfo = ""
    # With VNNI all kernels are exact, and those that are asked for here take twice the time.
    if not sums_in_16_bits(platform.machine(), cpuinfo):
        return _open(model, threads)
    try:
        return _open(model, threads, "session.x64quantprecision")
    except Fail as error:
        # Exact kernels for weights that several layers share give two tensors one name. Then these
        # CPUs are exact only with dequantized values in float kernels, which are slower still.
        if "replace the existing tensor" not in str(error):
            raise
        return _open(model, threads, "session.disable_quant_qdq")


def _open(model: Any, threads: int, *entries: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what is fatal; errors arrive as exceptions
    for entry in entries:
        options.add_session_config_entry(entry, "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxBackend(runner_core.Backend):
    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = []
        for node in session.get_inputs():
            if node.type not in DTYPES:
                raise ValueError("input %s has type %s" % (node.name, node.type))
            if not all(isinstance(size, int) for size in node.shape):
                raise ValueError("input %s has a dynamic shape %s" % (node.name, node.shape))
            self.inputs.append(runner_core.Tensor(node.name, DTYPES[node.type], node.shape))
        self._names = [node.name for node in session.get_outputs()]
        self._feed: Dict[str, Any] = {}
        self._results: List[Any] = []

    def bind(self, arrays: Sequence[Any]) -> None:
        self._feed = {tensor.name: array for tensor, array in zip(self.inputs, arrays)}

    def invoke(self) -> None:
        self._results = self._session.run(self._names, self._feed)

    def outputs(self) -> List[Tuple[str, Any]]:
        return list(zip(self._names, self._results))


class OnnxRunner(runner_core.Runner):
    name = "onnx"

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def selftest(self) -> None:
        import numpy as np

        session = _session(base64.b64decode(SELFTEST_MODEL), 1)
        (result,) = session.run(None, {"x": np.ones((1, 4), np.float32)})
        if result.tolist() != [[4.0, 4.0]]:
            raise RuntimeError("a 1x4 by 4x2 product of ones gave %s" % result.tolist())

    def load(
        self, args: argparse.Namespace, specs: List[runner_core.Tensor]
    ) -> runner_core.Backend:
        return OnnxBackend(_session(args.model, args.threads))


# onnx.helper: MatMul of x (1x4) by a 4x2 initializer of ones; IR version 8, opset 13.
SELFTEST_MODEL = (
    "CAgSADptChEKAXgKAXcSAXkiBk1hdE11bBIBZyorCAQIAhABQgF3SiAAAIA/AACAPwAAgD8AAIA/AACAPwAAgD8AAI"
    "A/AACAP1oTCgF4Eg4KDAgBEggKAggBCgIIBGITCgF5Eg4KDAgBEggKAggBCgIIAkIECgAQDQ=="
)

if __name__ == "__main__":
    sys.exit(runner_core.main(OnnxRunner()))
