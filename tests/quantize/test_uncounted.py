"""What multiplies is either counted or named; what does not is neither."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from edgekit.quantize import inspect_onnx
from edgekit.quantize.macs import multiplies
from edgekit.quantize.torch_counter import CountingMode, Counts

STEPS, IN, HIDDEN = 5, 3, 4


def _counts(module: Callable[..., object], *inputs: torch.Tensor) -> Counts:
    mode = CountingMode()
    with torch.no_grad(), mode:
        module(*inputs)
    return mode.counts


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("conv2d_relu", True),
        ("_scaled_dot_product_flash_attention_for_cpu", True),
        ("baddbmm", True),
        ("_int_mm", True),
        ("_trilinear", True),
        ("mkldnn_rnn_layer", True),
        ("upsample_bilinear2d", False),
        ("upsample_linear1d", False),
        ("convert_element_type", False),
        ("linear_prepack", False),
        ("comma", False),
    ],
)
def test_names(name: str, expected: bool) -> None:
    assert multiplies(name) is expected


def test_upsampling_multiplies_nothing() -> None:
    counts = _counts(nn.Upsample(scale_factor=2, mode="bilinear"), torch.zeros(1, 3, 4, 4))
    assert (counts.ops, counts.uncounted) == ([], [])


def test_attention_counts_both_products() -> None:
    q, k, v = torch.zeros(2, 6, 8), torch.zeros(2, 7, 8), torch.zeros(2, 7, 5)
    counts = _counts(nn.functional.scaled_dot_product_attention, q, k, v)
    assert sum(op.macs for op in counts.ops) == 2 * 6 * 7 * (8 + 5)
    assert {op.arithmetic for op in counts.ops} == {"float"} and not counts.uncounted
    heads = [torch.zeros(1, 2, n, 8) for n in (6, 7, 7)]
    counts = _counts(nn.functional.scaled_dot_product_attention, *heads)
    assert sum(op.macs for op in counts.ops) == 2 * 6 * 7 * (8 + 8)


@pytest.mark.parametrize(("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
@pytest.mark.parametrize("sides", [1, 2])
def test_recurrent_layers(layer: type[nn.RNNBase], gates: int, sides: int) -> None:
    module = layer(IN, HIDDEN, bidirectional=sides == 2)  # type: ignore[arg-type,call-arg]
    counts = _counts(module, torch.zeros(STEPS, 1, IN))
    expected = sides * STEPS * gates * HIDDEN * (IN + HIDDEN)
    assert sum(op.macs for op in counts.ops) == expected and not counts.uncounted


def _save(
    path: Path, nodes: Sequence[onnx.NodeProto], out: Sequence[int], **shapes: object
) -> Path:
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
        if isinstance(shape, list)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, out)
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, [0.5] * torch.Size(shape).numel())
        for name, shape in shapes.items()
        if isinstance(shape, tuple)
    ]
    graph = helper.make_graph(nodes, "g", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def test_onnx_lstm(tmp_path: Path) -> None:
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=HIDDEN)
    path = _save(
        tmp_path / "lstm.onnx",
        [node],
        [STEPS, 1, 1, HIDDEN],
        x=[STEPS, 1, IN],
        w=(1, 4 * HIDDEN, IN),
        r=(1, 4 * HIDDEN, HIDDEN),
    )
    found = inspect_onnx.inspect(path)
    assert found.macs == STEPS * 4 * HIDDEN * (IN + HIDDEN)
    assert (found.int8_mac_share, found.uncounted_ops) == (0, ())


@pytest.mark.parametrize(
    ("equation", "a", "b", "out", "macs"),
    [
        ("bij,bkj->bik", [2, 3, 4], [2, 5, 4], [2, 3, 5], 2 * 3 * 4 * 5),
        ("...ij , jk -> ...ik", [2, 3, 4], [4, 5], [2, 3, 5], 2 * 3 * 4 * 5),
        ("...i,...i", [1, 3, 4], [2, 3, 4], [2, 3], 2 * 3 * 4),
    ],
)
def test_onnx_einsum(
    equation: str, a: list[int], b: list[int], out: list[int], macs: int, tmp_path: Path
) -> None:
    node = helper.make_node("Einsum", ["a", "b"], ["y"], equation=equation)
    found = inspect_onnx.inspect(_save(tmp_path / "einsum.onnx", [node], out, a=a, b=b))
    assert (found.macs, found.int8_mac_share, found.uncounted_ops) == (macs, 0, ())


def test_onnx_einsum_of_one_operand_multiplies_nothing(tmp_path: Path) -> None:
    node = helper.make_node("Einsum", ["a"], ["y"], equation="ij->ji")
    found = inspect_onnx.inspect(_save(tmp_path / "einsum.onnx", [node], [3, 2], a=[2, 3]))
    assert (found.macs, found.uncounted_ops) == (0, ())


def test_onnx_products_in_a_body_are_named(tmp_path: Path) -> None:
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [2, 2])
    body = [helper.make_node("MatMul", ["a", "b"], ["inner"])]
    other = [helper.make_node("Add", ["a", "b"], ["inner"])]
    nodes = [
        helper.make_node("ReduceMax", ["a"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], ["condition"], to=TensorProto.BOOL),
        helper.make_node(
            "If",
            ["condition"],
            ["y"],
            then_branch=helper.make_graph(body, "then", [], [out]),
            else_branch=helper.make_graph(other, "else", [], [out]),
        ),
    ]
    found = inspect_onnx.inspect(_save(tmp_path / "if.onnx", nodes, [2, 2], a=[2, 2], b=[2, 2]))
    assert found.uncounted_ops == ("MatMul in If",)
    assert (found.macs, found.int8_mac_share) == (None, None)
