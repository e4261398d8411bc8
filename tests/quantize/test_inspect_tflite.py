from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import MissingExtra, UsageError
from edgekit.quantize import flatbuffer as fb
from edgekit.quantize.inspect_tflite import Graph, inspect, schema_names
from edgekit.types import OpCount
from tests.quantize import inspect_nets as nets


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``fp32``, ``products`` or the name of one of AI Edge Quantizer's own recipes."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    folder = tmp_path_factory.mktemp("tflite")
    float_file = folder / "fp32.tflite"
    litert_torch.convert(nets.net(), nets.net_input()).export(str(float_file))
    litert_torch.convert(nets.products(), nets.products_input()).export(
        str(folder / "products.tflite")
    )

    def make(name: str) -> Path:
        path = folder / f"{name}.tflite"
        if not path.exists():
            tool = quantizer.Quantizer(str(float_file))
            tool.load_quantization_recipe(getattr(recipe, name)())
            ranges = None
            if tool.need_calibration:
                signature = Interpreter(str(float_file)).get_signature_runner()
                (name_in,) = signature.get_input_details()
                samples = np.random.default_rng(0).normal(size=(2, 1, 3, 32, 32))
                calibration = [{name_in: sample.astype(np.float32)} for sample in samples]
                ranges = tool.calibrate({"serving_default": calibration})
            tool.quantize(ranges).export_model(str(path))
        return path

    return make


def test_float_file(files: Callable[[str], Path]) -> None:
    found = inspect(files("fp32"))
    assert found.macs == nets.NET_MACS
    assert found.int8_mac_share == 0
    assert found.delegated_share == 1
    assert found.outside_ops == ()
    # Weights, biases and the constants of PAD, TRANSPOSE and MEAN.
    assert 4 * (216 + 8 + 72 + 8 + 80 + 10) <= found.weight_bytes < 2000


def test_static_is_all_int8(files: Callable[[str], Path]) -> None:
    found = inspect(files("static_wi8_ai8"))
    assert (found.int8_mac_share, found.dynamic_mac_share) == (1, 0)
    assert found.delegated_share == 1
    assert found.macs == nets.NET_MACS
    # The NCHW input is transposed once.
    assert found.transposes == 1
    assert found.weight_bytes < 0.4 * inspect(files("fp32")).weight_bytes


def test_dynamic_is_told_apart(files: Callable[[str], Path]) -> None:
    found = inspect(files("dynamic_wi8_afp32"))
    assert (found.int8_mac_share, found.dynamic_mac_share) == (1, 1)
    assert any("run time" in note for note in found.notes)
    # XNNPACK has no dynamic depthwise kernel; the other two are delegated.
    assert found.outside_ops == (OpCount("DEPTHWISE_CONV_2D", 1),)
    assert found.delegated_share == pytest.approx(1 - nets.DEPTHWISE_MACS / nets.NET_MACS)


def test_weight_only_is_not_int8(files: Callable[[str], Path]) -> None:
    found = inspect(files("weight_only_wi8_afp32"))
    assert (found.int8_mac_share, found.dynamic_mac_share) == (0, 0)
    assert found.quantize_ops == 3
    assert any("weight-only" in note for note in found.notes)


def test_other_products(files: Callable[[str], Path]) -> None:
    assert inspect(files("products")).macs == nets.PRODUCTS_MACS


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.99])
def test_cut_short(files: Callable[[str], Path], tmp_path: Path, keep: float) -> None:
    data = files("fp32").read_bytes()
    path = tmp_path / "cut.tflite"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UsageError, match=r"cut\.tflite cannot be read as a TFLite model") as caught:
        inspect(path)
    assert caught.value.remedy


def test_damage_never_escapes_the_reader(files: Callable[[str], Path]) -> None:
    """The structure reader by itself: the interpreter is native and runs in a worker."""
    names = schema_names()
    data = files("static_wi8_ai8").read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(4):
            damaged[rng.randrange(8, len(data))] = rng.choice((0, 1, 127, 255))
        try:
            graph = Graph(memoryview(damaged), *names)
            for index in range(len(graph.names)):
                graph.mac_op(index)
        except fb.Damaged:
            refused += 1
    assert refused > 100


def test_without_litert(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert", None)
    with pytest.raises(MissingExtra, match="ai_edge_litert"):
        inspect(tmp_path / "any.tflite")
