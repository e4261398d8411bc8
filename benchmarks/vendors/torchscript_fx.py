"""TorchScript, after docs.pytorch.org, "FX Graph Mode Post Training Static Quantization"."""

from __future__ import annotations

import torch
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from benchmarks.vendors.inputs import Inputs, read_inputs


def main(given: Inputs) -> None:
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(given.model, given.example), given.out / "fp32.pt")

        torch.backends.quantized.engine = "qnnpack"
        mapping = get_default_qconfig_mapping("qnnpack")
        prepared = prepare_fx(given.model, mapping, given.example)
        for photo in given.photos:
            prepared(torch.from_numpy(photo))
        quantized = convert_fx(prepared)
        torch.jit.save(torch.jit.trace(quantized, given.example), given.out / "int8.pt")


if __name__ == "__main__":
    main(read_inputs())
