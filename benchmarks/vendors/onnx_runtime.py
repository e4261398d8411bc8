"""ONNX Runtime, after onnxruntime.ai, "Quantize ONNX models" and its image example."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_dynamic,
    quantize_static,
)

from benchmarks.vendors.inputs import Inputs, read_inputs


class Samples(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, model: str, samples: list[tuple[np.ndarray, ...]]) -> None:
        names = [given.name for given in onnxruntime.InferenceSession(model).get_inputs()]
        self._feeds = iter([dict(zip(names, sample, strict=True)) for sample in samples])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def main(given: Inputs) -> None:
    float_file, prepared = str(given.out / "fp32.onnx"), str(given.out / "prepared.onnx")
    int8_file = str(given.out / "int8.onnx")
    torch.onnx.export(given.model, given.example, float_file, dynamo=True, external_data=False)

    quant_pre_process(float_file, prepared)
    if given.dynamic:
        quantize_dynamic(prepared, int8_file, weight_type=QuantType.QInt8)
        return
    quantize_static(
        prepared,
        int8_file,
        Samples(prepared, given.samples),
        quant_format=QuantFormat.QDQ,
        weight_type=QuantType.QInt8,
    )


if __name__ == "__main__":
    main(read_inputs())
