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
    quantize_static,
)

from benchmarks.vendors.inputs import Inputs, read_inputs


class Photos(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, model: str, photos: list[np.ndarray]) -> None:
        name = onnxruntime.InferenceSession(model).get_inputs()[0].name
        self._feeds = iter([{name: photo} for photo in photos])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def main(given: Inputs) -> None:
    float_file, prepared = str(given.out / "fp32.onnx"), str(given.out / "prepared.onnx")
    torch.onnx.export(given.model, given.example, float_file, dynamo=True, external_data=False)

    quant_pre_process(float_file, prepared)
    quantize_static(
        prepared,
        str(given.out / "int8.onnx"),
        Photos(prepared, given.photos),
        quant_format=QuantFormat.QDQ,
        weight_type=QuantType.QInt8,
    )


if __name__ == "__main__":
    main(read_inputs())
