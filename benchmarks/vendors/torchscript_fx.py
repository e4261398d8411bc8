"""TorchScript, after docs.pytorch.org: "FX Graph Mode Post Training Static Quantization" and, for
activations that are quantized at run time, the API example of "Post Training Dynamic Quantization".
"""

from __future__ import annotations

import torch
from torch.ao.quantization import get_default_qconfig_mapping, quantize_dynamic
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from benchmarks.vendors.inputs import Inputs, read_inputs


def main(given: Inputs) -> None:
    with torch.no_grad():
        if given.float_file:
            torch.jit.save(torch.jit.trace(given.model, given.example), given.out / "fp32.pt")

        torch.backends.quantized.engine = "qnnpack"
        if given.dynamic:
            quantized = quantize_dynamic(given.model, {torch.nn.Linear}, dtype=torch.qint8)
        else:
            mapping = get_default_qconfig_mapping("qnnpack")
            prepared = prepare_fx(given.model, mapping, given.example)
            for sample in given.tensors():
                prepared(*sample)
            quantized = convert_fx(prepared)
        torch.jit.save(torch.jit.trace(quantized, given.example), given.out / "int8.pt")


if __name__ == "__main__":
    main(read_inputs())
