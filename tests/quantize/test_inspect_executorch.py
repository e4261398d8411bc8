from __future__ import annotations

import random
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekit.errors import UsageError
from edgekit.quantize import flatbuffer as fb
from edgekit.quantize import inspect_executorch, xnnpack_payload
from edgekit.quantize.inspect_executorch import inspect
from edgekit.types import OpCount
from tests.quantize import inspect_nets as nets


def _lower(model: Any, inputs: tuple[Any, ...], path: Path, *, delegate: bool = True) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(model, inputs)
    partitioners = [XnnpackPartitioner()] if delegate else []
    lowered = to_edge_transform_and_lower(program, partitioner=partitioners).to_executorch()
    path.write_bytes(lowered.buffer)


def _quantized(model: Any, *, dynamic: bool = False) -> Any:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = XNNPACKQuantizer().set_global(config)
    prepared = prepare_pt2e(torch.export.export(model, nets.net_input()).module(), quantizer)
    prepared(*nets.net_input())
    return convert_pt2e(prepared)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Files of the stock XNNPACK route, made when first asked for."""
    folder = tmp_path_factory.mktemp("executorch")
    recipes: dict[str, Callable[[Path], None]] = {
        "fp32": lambda path: _lower(nets.net(), nets.net_input(), path),
        "undelegated": lambda path: _lower(nets.net(), nets.net_input(), path, delegate=False),
        "static": lambda path: _lower(_quantized(nets.net()), nets.net_input(), path),
        "dynamic": lambda path: _lower(
            _quantized(nets.net(), dynamic=True), nets.net_input(), path
        ),
        "outside": lambda path: _lower(_quantized(nets.net(outside=True)), nets.net_input(), path),
        "products": lambda path: _lower(nets.products(), nets.products_input(), path),
        "products-undelegated": lambda path: _lower(
            nets.products(), nets.products_input(), path, delegate=False
        ),
    }

    def make(name: str) -> Path:
        path = folder / f"{name}.pte"
        if not path.exists():
            recipes[name](path)
        return path

    return make


def test_float_file(files: Callable[[str], Path]) -> None:
    found = inspect(files("fp32"))
    assert found.macs == nets.NET_MACS
    assert found.int8_mac_share == 0
    assert found.delegated_share == 1
    assert found.outside_ops == ()
    assert 4 * (216 + 8 + 72 + 8 + 80 + 10) <= found.weight_bytes < 2000


def test_static_is_all_int8(files: Callable[[str], Path]) -> None:
    found = inspect(files("static"))
    assert (found.int8_mac_share, found.dynamic_mac_share, found.delegated_share) == (1, 0, 1)
    assert found.macs == nets.NET_MACS
    # Into int8 at the input and back at the output, both inside of the delegate.
    assert found.quantize_ops == 2
    assert found.weight_bytes < 0.5 * inspect(files("fp32")).weight_bytes


def test_dynamic_is_told_apart(files: Callable[[str], Path]) -> None:
    found = inspect(files("dynamic"))
    # XNNPACK's dynamic recipe leaves the depthwise convolution in float.
    expected = 1 - nets.DEPTHWISE_MACS / nets.NET_MACS
    assert found.int8_mac_share == pytest.approx(expected)
    assert found.dynamic_mac_share == pytest.approx(expected)


def test_operator_outside_the_delegate(files: Callable[[str], Path]) -> None:
    found = inspect(files("outside"))
    assert found.outside_ops == (OpCount("aten::cumsum", 1),)
    assert "delegates: 2 XnnpackBackend" in found.notes
    assert (found.int8_mac_share, found.delegated_share) == (1, 1)


def test_nothing_delegated(files: Callable[[str], Path]) -> None:
    found = inspect(files("undelegated"))
    assert found.macs == nets.NET_MACS
    assert (found.int8_mac_share, found.delegated_share) == (0, 0)
    assert OpCount("aten::convolution", 2) in found.outside_ops
    assert "delegates: none" in found.notes


@pytest.mark.parametrize("name", ["products", "products-undelegated"])
def test_other_products(files: Callable[[str], Path], name: str) -> None:
    assert inspect(files(name)).macs == nets.PRODUCTS_MACS


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.6, 0.9])
def test_cut_short(files: Callable[[str], Path], tmp_path: Path, keep: float) -> None:
    data = files("static").read_bytes()
    path = tmp_path / "cut.pte"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UsageError, match=r"cut\.pte cannot be read as an ExecuTorch") as caught:
        inspect(path)
    assert caught.value.remedy


def test_damage_is_a_usage_error(files: Callable[[str], Path], tmp_path: Path) -> None:
    data = files("static").read_bytes()
    rng = random.Random(0)
    path = tmp_path / "damaged.pte"
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(4):
            damaged[rng.randrange(8, len(data))] = rng.choice((0, 1, 127, 255))
        path.write_bytes(damaged)
        try:
            inspect(path)
        except UsageError:
            refused += 1
    assert refused > 100


# How the tables of the two modules are called in ExecuTorch's schemas.
_TABLES: dict[type[fb.Table], str] = {
    inspect_executorch._Tensor: "Tensor",
    inspect_executorch._Operator: "Operator",
    inspect_executorch.KernelCall: "KernelCall",
    inspect_executorch.DelegateCall: "DelegateCall",
    inspect_executorch._Chain: "Chain",
    inspect_executorch._DataReference: "BackendDelegateDataReference",
    inspect_executorch._Delegate: "BackendDelegate",
    inspect_executorch._Plan: "ExecutionPlan",
    inspect_executorch._Buffer: "Buffer",
    inspect_executorch._DataSegment: "DataSegment",
    inspect_executorch._SubsegmentOffsets: "SubsegmentOffsets",
    inspect_executorch._NamedData: "NamedData",
    inspect_executorch._Program: "Program",
    xnnpack_payload._TensorValue: "XNNTensorValue",
    xnnpack_payload._QuantizedTensorValue: "XNNQuantizedTensorValue",
    xnnpack_payload._Conv: "_XNNNodeConv",
    xnnpack_payload._FullyConnected: "XNNFullyConnected",
    xnnpack_payload._Product: "_XNNNode2x1",
    xnnpack_payload._Attention: "XNNScaledDotProductAttention",
    xnnpack_payload._ConstantOffset: "ConstantDataOffset",
    xnnpack_payload._XnnGraph: "XNNGraph",
}


@pytest.mark.parametrize("table", _TABLES, ids=_TABLES.get)
def test_fields_are_where_the_installed_schema_says(table: type[fb.Table]) -> None:
    if table.__module__ == xnnpack_payload.__name__:
        package, file = "executorch.backends.xnnpack.serialization", "schema.fbs"
        old = [(resources.files(package) / "runtime_schema.fbs").read_text()]
    else:
        package, file, old = "executorch.exir._serialize", "program.fbs", []
    for text in [(resources.files(package) / file).read_text(), *old]:
        schema = re.sub(r"//.*", "", text)
        body = re.search(rf"table {_TABLES[table]}\s*{{(.*?)}}", schema, re.DOTALL)
        assert body is not None
        slots: list[str] = []
        for name, kind in re.findall(r"(\w+)\s*:\s*([^;]+);", body[1]):
            # A union takes two slots, its type and its value.
            slots += [f"{name}_type", name] if kind.strip() in _unions(schema) else [name]
        declared = {k: v.slot for k, v in vars(table).items() if isinstance(v, fb.Field)}
        assert declared
        for name, slot in declared.items():
            if name in slots:
                assert slots.index(name) == slot, name
            else:  # present in the other version of the schema only
                assert old and name == "dq_datatype"


def _unions(schema: str) -> list[str]:
    return re.findall(r"union (\w+)", schema)


def test_union_numbers_are_those_of_the_installed_schema() -> None:
    package = resources.files("executorch.backends.xnnpack.serialization")
    schema = re.sub(r"//.*", "", (package / "schema.fbs").read_text())
    body = re.search(r"union XNodeUnion {(.*?)}", schema, re.DOTALL)
    assert body is not None
    names = re.findall(r"(\w+)\s*(?::\s*\w+)?\s*,", body[1])
    for number, name in xnnpack_payload._NAMES.items():
        assert names[number - 1] == name
    assert names[xnnpack_payload._TRANSPOSE - 1] == "XNNStaticTranspose"
    assert names[xnnpack_payload._CONVERT - 1] == "XNNConvert"
