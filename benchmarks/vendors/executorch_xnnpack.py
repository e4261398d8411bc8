"""ExecuTorch with the XNNPACK backend, after docs.pytorch.org/executorch, "XNNPACK Backend"."""

from __future__ import annotations

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.exir import to_edge_transform_and_lower
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from benchmarks.vendors.inputs import Inputs, read_inputs


def main(given: Inputs) -> None:
    if given.float_file:
        lowered = to_edge_transform_and_lower(
            torch.export.export(given.model, given.example), partitioner=[XnnpackPartitioner()]
        ).to_executorch()
        (given.out / "fp32.pte").write_bytes(lowered.buffer)

    quantizer = XNNPACKQuantizer()
    quantizer.set_global(
        get_symmetric_quantization_config(is_per_channel=True, is_dynamic=given.dynamic)
    )
    exported = torch.export.export(given.model, given.example).module()
    prepared = prepare_pt2e(exported, quantizer)
    for sample in given.tensors():
        prepared(*sample)
    quantized = convert_pt2e(prepared)
    lowered = to_edge_transform_and_lower(
        torch.export.export(quantized, given.example), partitioner=[XnnpackPartitioner()]
    ).to_executorch()
    (given.out / "int8.pte").write_bytes(lowered.buffer)


if __name__ == "__main__":
    main(read_inputs())
