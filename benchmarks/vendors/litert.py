"""TFLite through litert-torch and AI Edge Quantizer, after their READMEs and its SRQ colab."""

from __future__ import annotations

import litert_torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe

from benchmarks.vendors.inputs import Inputs, read_inputs


def main(given: Inputs) -> None:
    float_file = str(given.out / "fp32.tflite")
    litert_torch.convert(given.model, given.example).export(float_file)

    if given.dynamic:
        quantizing = quantizer.Quantizer(float_file, recipe.dynamic_wi8_afp32())
        quantized = quantizing.quantize()
    else:
        quantizing = quantizer.Quantizer(float_file, recipe.static_wi8_ai8())
        ((signature, tensors),) = Interpreter(float_file).get_signature_list().items()
        # args_0, args_1, ...: the order of the model's inputs.
        names = sorted(tensors["inputs"], key=lambda name: int(name.rpartition("_")[2]))
        feeds = [dict(zip(names, sample, strict=True)) for sample in given.samples]
        quantized = quantizing.quantize(quantizing.calibrate({signature: feeds}))
    quantized.export_model(str(given.out / "int8.tflite"))


if __name__ == "__main__":
    main(read_inputs())
