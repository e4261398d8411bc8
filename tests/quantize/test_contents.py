"""What is told of files that edgekit did not make: placement of operators, sizes, needs."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest
import torch

from edgekit.quantize import xnnpack_payload
from edgekit.quantize.contents import Contents, Placement, describe_worker
from edgekit.quantize.contents_executorch import contents as executorch_contents
from edgekit.quantize.contents_onnx import contents as onnx_contents
from edgekit.quantize.contents_tflite import contents as tflite_contents
from edgekit.quantize.contents_torchscript import contents as torchscript_contents
from tests.quantize import inspect_nets as nets


def ops(found: Contents, placement: Placement) -> dict[str, int]:
    return {
        op.op: op.count for one in found.operators if one.placement == placement for op in one.ops
    }


def check_size(found: Contents, path: Path) -> None:
    assert sum(found.bytes_by_part.values()) == path.stat().st_size
    assert all(found.bytes_by_part.values())


def test_executorch_splits_delegate_and_fallback_and_names_the_kernels(tmp_path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    path = tmp_path / "net.pte"
    program = torch.export.export(nets.net(outside=True), nets.net_input())
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)
    found = executorch_contents(path)
    delegated = ops(found, "delegate")
    assert delegated["Conv2d"] == 1 and delegated["DepthwiseConv2d"] == 1
    assert delegated["FullyConnected"] == 1
    assert ops(found, "fallback")["aten::cumsum"] == 1
    needs = "; ".join(found.needs)
    assert "schema 0" in needs and "XnnpackBackend" in needs and "aten::cumsum" in needs
    check_size(found, path)


def test_the_names_of_xnnpack_operators_are_those_of_the_schema() -> None:
    folder = resources.files("executorch.backends.xnnpack.serialization")
    schema = folder.joinpath("runtime_schema.fbs").read_text(encoding="utf-8")
    (union,) = re.findall(r"union XNodeUnion \{(.*?)\}", schema, re.DOTALL)
    names = [entry.partition(":")[0].strip() for entry in union.split(",") if entry.strip()]
    assert [f"XNN{name}" for name in xnnpack_payload.OPERATORS.values()] == names
    assert list(xnnpack_payload.OPERATORS) == list(range(1, len(names) + 1))


@pytest.mark.parametrize(("opset", "runtime"), [(17, "1.12"), (18, "1.14")])
def test_onnx_says_the_runtime_that_its_opset_needs(
    opset: int, runtime: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.onnx"
    torch.onnx.export(nets.net(), nets.net_input(), str(path), dynamo=False, opset_version=opset)
    found = onnx_contents(path)
    assert ops(found, "float") and not ops(found, "int8")
    assert f"ONNX Runtime {runtime} or newer for opset {opset}" in found.needs[0]
    check_size(found, path)


def test_quantized_onnx_has_operators_in_int8_and_changes_of_type(tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain, path = tmp_path / "net.onnx", tmp_path / "int8.onnx"
    torch.onnx.export(nets.net(), nets.net_input(), str(plain), dynamo=False, opset_version=17)
    quantize_dynamic(str(plain), str(path), weight_type=QuantType.QUInt8)
    found = onnx_contents(path)
    assert sum(ops(found, "int8").values()) >= 2
    assert ops(found, "convert")["DynamicQuantizeLinear"] >= 1
    check_size(found, path)


def test_tflite_says_what_xnnpack_takes_and_the_versions(tmp_path: Path) -> None:
    import litert_torch

    path = tmp_path / "net.tflite"
    litert_torch.convert(nets.net(), nets.net_input()).export(str(path))
    found = tflite_contents(path)
    placed = ops(found, "delegate")
    assert placed["CONV_2D"] == 1 and placed["DEPTHWISE_CONV_2D"] == 1
    assert any(re.search(r"version \d+\.\d+", need) for need in found.needs)
    check_size(found, path)


def test_tflite_with_operators_of_others_has_no_placement(tmp_path: Path) -> None:
    import flatbuffers
    import litert_torch
    from ai_edge_litert import schema_py_generated as schema

    path = tmp_path / "net.tflite"
    litert_torch.convert(nets.net(), nets.net_input()).export(str(path))
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    code = next(c for c in model.operatorCodes if c.builtinCode == schema.BuiltinOperator.CONV_2D)
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = b"TheirConvolution"
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    found = tflite_contents(path)
    assert {one.placement for one in found.operators} == {"unknown"}
    assert ops(found, "unknown")["DEPTHWISE_CONV_2D"] == 1


def test_torchscript_says_what_was_run_and_its_format(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.jit.trace(nets.net(), nets.net_input()).save(str(path))
    found = torchscript_contents(path)
    placed = ops(found, "float")
    assert sum(n for op, n in placed.items() if "convolution" in op) == 2
    assert not ops(found, "int8")
    assert re.search(r"file format \d+", found.needs[0])
    check_size(found, path)


def test_a_program_that_is_not_run_has_sizes_and_no_operators(tmp_path: Path) -> None:
    class Reading(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.from_file("/etc/hostname", size=1, dtype=torch.uint8)

    path = tmp_path / "bad.pt"
    torch.jit.script(Reading()).save(str(path))
    found = torchscript_contents(path)
    assert found.operators == ()
    check_size(found, path)


def test_the_worker_gives_both_as_json(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.jit.trace(nets.net(), nets.net_input()).save(str(path))
    answer = describe_worker({"path": str(path)})
    assert answer["inspection"]["macs"] == nets.NET_MACS
    assert answer["contents"]["needs"] and answer["contents"]["bytes_by_part"]["tensors"] > 0
