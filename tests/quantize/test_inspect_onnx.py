from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import MissingExtra, UsageError
from edgekit.quantize.inspect_onnx import inspect
from tests.quantize import inspect_nets as nets


def _export(model: Any, inputs: tuple[Any, ...], path: Path, **options: Any) -> None:
    torch.onnx.export(
        model, inputs, str(path), dynamo=False, opset_version=17, input_names=["x"], **options
    )


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Files of ONNX Runtime's stock quantization tools."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples: Iterator[dict[str, Any]] = iter([{"x": nets.net_input()[0].numpy()}])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.samples, None)

    folder = tmp_path_factory.mktemp("onnx")
    _export(nets.net(), nets.net_input(), folder / "fp32.onnx")
    _export(nets.products(), nets.products_input(), folder / "products.onnx")
    _export(nets.net(), nets.net_input(), folder / "batch.onnx", dynamic_axes={"x": {0: "batch"}})
    _export(
        nets.net(), nets.net_input(), folder / "size.onnx", dynamic_axes={"x": {2: "h", 3: "w"}}
    )
    prepared = folder / "prepared.onnx"
    quant_pre_process(str(folder / "fp32.onnx"), str(prepared))
    for name, form in (("qdq", QuantFormat.QDQ), ("qoperator", QuantFormat.QOperator)):
        quantize_static(
            str(prepared),
            str(folder / f"{name}.onnx"),
            Reader(),
            quant_format=form,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    quantize_dynamic(str(prepared), str(folder / "dynamic.onnx"))
    return lambda name: folder / f"{name}.onnx"


def test_float_file(files: Callable[[str], Path]) -> None:
    found = inspect(files("fp32"))
    assert found.macs == nets.NET_MACS
    assert found.int8_mac_share == 0
    assert found.delegated_share is None
    assert found.outside_ops == ()
    assert 4 * (216 + 8 + 72 + 8 + 80 + 10) <= found.weight_bytes < 2000


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_static_is_all_int8(files: Callable[[str], Path], form: str) -> None:
    found = inspect(files(form))
    assert (found.int8_mac_share, found.dynamic_mac_share) == (1, 0)
    assert found.macs == nets.NET_MACS
    # All inner pairs are gone: one into int8 at the input, one back at the output.
    assert found.quantize_ops == 2
    assert found.outside_ops == ()


def test_dynamic_is_told_apart(files: Callable[[str], Path]) -> None:
    found = inspect(files("dynamic"))
    assert (found.int8_mac_share, found.dynamic_mac_share) == (1, 1)
    assert any("run time" in note for note in found.notes)
    assert "Clip" in {op.op for op in found.outside_ops}


def test_other_products(files: Callable[[str], Path]) -> None:
    assert inspect(files("products")).macs == nets.PRODUCTS_MACS


def test_symbolic_batch_counts_once(files: Callable[[str], Path]) -> None:
    assert inspect(files("batch")).macs == nets.NET_MACS


def test_symbolic_size_is_not_guessed(files: Callable[[str], Path]) -> None:
    found = inspect(files("size"))
    assert found.macs is None
    assert found.int8_mac_share is None
    assert any("no static shape" in note for note in found.notes)


def _conv_model(
    path: Path, *, quantize_input: bool, quantize_output: bool, domain: str = ""
) -> Path:
    """A 1x1 convolution 3->2 on 4x4 with int8 weights behind a DequantizeLinear.

    ``domain`` adds an operator of that domain, which no runtime knows.
    """
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    zero = numpy_helper.from_array(np.array(128, np.uint8), "zero")
    weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.int8), "w")
    weight_zero = numpy_helper.from_array(np.array(0, np.int8), "w_zero")
    nodes = [helper.make_node("DequantizeLinear", ["w", "scale", "w_zero"], ["w_float"])]
    source, result = "x", "conv"

    def pair(name: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_q"]))
        nodes.append(
            helper.make_node("DequantizeLinear", [f"{name}_q", "scale", "zero"], [f"{name}_dq"])
        )
        return f"{name}_dq"

    if quantize_input:
        source = pair(source)
    nodes.append(helper.make_node("Conv", [source, "w_float"], ["conv"]))
    if quantize_output:
        result = pair(result)
    if domain:
        nodes.append(helper.make_node("Unknown", [result], ["y"], domain=domain))
    else:
        nodes.append(helper.make_node("Relu", [result], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 4])],
        [scale, zero, weight, weight_zero],
    )
    opsets = [helper.make_opsetid("", 17)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


def test_weight_only_is_not_int8(tmp_path: Path) -> None:
    path = _conv_model(tmp_path / "m.onnx", quantize_input=False, quantize_output=False)
    found = inspect(path)
    assert (found.macs, found.int8_mac_share) == (2 * 16 * 3, 0)
    assert any("weight-only" in note for note in found.notes)


def _packed_product(path: Path, bits: int, accuracy_level: int) -> Path:
    """A file with ONNX Runtime's own product of 5 x 64 float by 64 x 16 packed weights."""
    packed = np.zeros((16, 2, 32 * bits // 8), np.uint8)
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "scales"], ["y"], domain="com.microsoft", K=64, N=16,
        bits=bits, block_size=32, accuracy_level=accuracy_level,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, 16])],
        [
            numpy_helper.from_array(packed, "w"),
            numpy_helper.from_array(np.ones(32, np.float32), "scales"),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


@pytest.mark.parametrize(("accuracy_level", "int8"), [(4, 1), (1, 0)])
def test_packed_weights_are_int8_as_far_as_activations_become_it(
    accuracy_level: int, int8: int, tmp_path: Path
) -> None:
    found = inspect(_packed_product(tmp_path / "m.onnx", 8, accuracy_level))
    assert found.macs == 5 * 64 * 16
    assert (found.int8_mac_share, found.dynamic_mac_share) == (int8, int8)
    assert found.int8_weight_mac_share == 1


def test_weights_of_4_bits_are_not_counted(tmp_path: Path) -> None:
    found = inspect(_packed_product(tmp_path / "m.onnx", 4, 4))
    assert found.int8_mac_share is None
    assert found.uncounted_ops == ("MatMulNBits",)


def test_pairs_that_the_runtime_does_not_fuse_are_not_int8(tmp_path: Path) -> None:
    """Without a quantized output there is no QLinearConv, although the file looks like int8."""
    fused = _conv_model(tmp_path / "fused.onnx", quantize_input=True, quantize_output=True)
    unfused = _conv_model(tmp_path / "unfused.onnx", quantize_input=True, quantize_output=False)
    assert inspect(fused).int8_mac_share == 1
    found = inspect(unfused)
    assert (found.macs, found.int8_mac_share) == (2 * 16 * 3, 0)
    assert any("quantized in the file, but" in note for note in found.notes)


def test_a_file_that_the_runtime_refuses_is_counted_as_written(tmp_path: Path) -> None:
    path = _conv_model(
        tmp_path / "m.onnx", quantize_input=True, quantize_output=True, domain="org.example"
    )
    found = inspect(path)
    assert (found.macs, found.int8_mac_share) == (2 * 16 * 3, 1)
    assert any("refuses it" in note for note in found.notes)


def test_weights_in_another_file(files: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(
        onnx.load(str(files("fp32"))),
        str(path),
        save_as_external_data=True,
        location="model.weights",
        size_threshold=0,
    )
    assert (tmp_path / "model.weights").stat().st_size > 1000
    assert inspect(path).macs == nets.NET_MACS
    (tmp_path / "model.weights").unlink()
    with pytest.raises(UsageError, match=r"model\.weights, which is not beside it"):
        inspect(path)


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.6, 0.99])
def test_cut_short(files: Callable[[str], Path], tmp_path: Path, keep: float) -> None:
    data = files("qdq").read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UsageError, match=r"cut\.onnx cannot be read as an ONNX model") as caught:
        inspect(path)
    assert caught.value.remedy


def test_without_onnx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package in ("onnxruntime", "onnx"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtra, match=package):
            inspect(tmp_path / "any.onnx")


def _product(path: Path, kind: int = TensorProto.FLOAT) -> None:
    """A matrix product over sequences whose length has a name."""
    shape: list[str | int | None] = ["batch", "sequence", 8]
    weight = numpy_helper.from_array(np.ones((8, 4), np.float32), "w")
    weight.data_type = kind
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape[:2], 4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    path.write_bytes(model.SerializeToString())


def test_a_named_axis_beside_the_batch_has_no_count(tmp_path: Path) -> None:
    path = tmp_path / "sequence.onnx"
    _product(path)
    assert any("no static shape for 1" in note for note in inspect(path).notes)


@pytest.mark.parametrize("kind", [99, 0])
def test_an_unknown_type_of_tensor_is_said(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "strange.onnx"
    _product(path, kind)
    with pytest.raises(UsageError, match=f"tensor type {kind} is unknown"):
        inspect(path)
