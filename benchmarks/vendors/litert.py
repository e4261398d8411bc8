"""TFLite through litert-torch and AI Edge Quantizer, after their READMEs and its SRQ colab."""

from __future__ import annotations

import litert_torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe

from benchmarks.vendors.inputs import Inputs, read_inputs


def main(given: Inputs) -> None:
    float_file = str(given.out / "fp32.tflite")
    litert_torch.convert(given.model, given.example).export(float_file)

    quantizing = quantizer.Quantizer(float_file, recipe.static_wi8_ai8())
    ((signature, tensors),) = Interpreter(float_file).get_signature_list().items()
    (name,) = tensors["inputs"]
    calibration = quantizing.calibrate({signature: [{name: photo} for photo in given.photos]})
    quantizing.quantize(calibration).export_model(str(given.out / "int8.tflite"))


if __name__ == "__main__":
    main(read_inputs())
