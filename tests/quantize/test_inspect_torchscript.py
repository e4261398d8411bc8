from __future__ import annotations

import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekit.errors import MissingExtra, UsageError
from edgekit.quantize import torchscript_code
from edgekit.quantize.inspect_torchscript import input_files, inspect
from edgekit.types import TensorSpec
from tests.quantize import inspect_nets as nets

pytestmark = pytest.mark.filterwarnings("ignore")


def _trace(model: Any, inputs: tuple[Any, ...]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, inputs)


def _static() -> Any:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    mapping = get_default_qconfig_mapping("qnnpack")
    prepared = prepare_fx(nets.net(), mapping, nets.net_input())
    prepared(*nets.net_input())
    return convert_fx(prepared)


def _dynamic() -> Any:
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(nets.net(), {nn.Linear})


class _Dequantizes(nn.Module):
    """A 1x1 convolution 3->2 whose int8 weight, and if asked its input, is turned back to float."""

    weight: torch.Tensor

    def __init__(self, quantize_input: bool) -> None:
        super().__init__()
        self.quantize_input = quantize_input
        weight = torch.ones(2, 3, 1, 1)
        self.register_buffer("weight", torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.quantize_input:
            x = torch.quantize_per_tensor(x, 0.1, 128, torch.quint8).dequantize()
        return nn.functional.conv2d(x, self.weight.dequantize())


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("torchscript")
    image = (torch.zeros(1, 3, 4, 4),)
    programs: dict[str, Callable[[], Any]] = {
        "fp32": lambda: _trace(nets.net(), nets.net_input()),
        "frozen": lambda: torch.jit.freeze(_trace(nets.net(), nets.net_input())),
        "scripted": lambda: torch.jit.script(nets.net()),
        "products": lambda: _trace(nets.products(), nets.products_input()),
        "static": lambda: _trace(_static(), nets.net_input()),
        "dynamic": lambda: _trace(_dynamic(), nets.net_input()),
        "weight-only": lambda: _trace(_Dequantizes(quantize_input=False), image),
        "pairs": lambda: _trace(_Dequantizes(quantize_input=True), image),
    }

    def make(name: str) -> Path:
        path = folder / f"{name}.pt"
        if not path.exists():
            programs[name]().save(str(path))
        return path

    return make


def test_float_file(files: Callable[[str], Path]) -> None:
    found = inspect(files("fp32"))
    assert found.macs == nets.NET_MACS
    assert found.int8_mac_share == 0
    assert found.delegated_share is None
    assert found.outside_ops == ()
    assert 4 * (216 + 8 + 72 + 8 + 80 + 10) <= found.weight_bytes < 2000


def test_static_is_all_int8(files: Callable[[str], Path]) -> None:
    found = inspect(files("static"))
    assert (found.int8_mac_share, found.dynamic_mac_share) == (1, 0)
    assert found.macs == nets.NET_MACS
    assert found.quantize_ops == 2
    assert found.outside_ops == ()
    assert found.weight_bytes < 0.4 * inspect(files("fp32")).weight_bytes


def test_dynamic_is_told_apart(files: Callable[[str], Path]) -> None:
    found = inspect(files("dynamic"))
    expected = nets.LINEAR_MACS / nets.NET_MACS
    assert found.int8_mac_share == pytest.approx(expected)
    assert found.dynamic_mac_share == pytest.approx(expected)
    assert "aten::hardtanh" in {op.op for op in found.outside_ops}


@pytest.mark.parametrize(
    ("name", "note"), [("weight-only", "weight-only"), ("pairs", "quantized in the file, but")]
)
def test_int8_weights_in_float_arithmetic(
    files: Callable[[str], Path], name: str, note: str
) -> None:
    found = inspect(files(name))
    assert (found.macs, found.int8_mac_share) == (2 * 16 * 3, 0)
    assert any(note in text for text in found.notes)


def test_other_products(files: Callable[[str], Path]) -> None:
    found = inspect(files("products"))
    assert found.macs == nets.PRODUCTS_MACS
    assert found.transposes == 1


@pytest.mark.parametrize("name", ["frozen", "scripted"])
def test_unknown_input_is_guessed_and_said(files: Callable[[str], Path], name: str) -> None:
    found = inspect(files(name))
    # 224x224 has 49 times the pixels of 32x32; the linear layer is the same.
    assert found.macs == 49 * (nets.CONV_MACS + nets.DEPTHWISE_MACS) + nets.LINEAR_MACS
    assert any("1x3x224x224 is assumed" in note for note in found.notes)


def test_described_input_is_not_guessed(files: Callable[[str], Path], tmp_path: Path) -> None:
    program = torch.jit.load(str(files("frozen")))
    path = tmp_path / "described.pt"
    described = input_files([TensorSpec("x", (1, 3, 32, 32), "float32")])
    torch.jit.save(program, str(path), _extra_files=described)
    found = inspect(path)
    assert found.macs == nets.NET_MACS
    assert not any("assumed" in note for note in found.notes)
    torch.jit.save(program, str(path), _extra_files=dict.fromkeys(described, "{}]"))
    with pytest.raises(UsageError, match="edgekit_inputs"):
        inspect(path)


def test_program_that_cannot_be_run(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(7, 11)

    torch.jit.script(Odd()).save(str(tmp_path / "odd.pt"))
    found = inspect(tmp_path / "odd.pt")
    assert found.macs is None
    assert any("cannot be run on zeros" in note for note in found.notes)


def test_checkpoint_is_not_a_program(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(nets.net().state_dict(), path)
    with pytest.raises(UsageError, match=r"holds weights saved by torch\.save") as caught:
        inspect(path)
    assert "--weights weights.pt" in caught.value.remedy


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.99])
def test_cut_short(files: Callable[[str], Path], tmp_path: Path, keep: float) -> None:
    data = files("static").read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UsageError, match=r"cut\.pt cannot be read as a TorchScript") as caught:
        inspect(path)
    assert caught.value.remedy


def test_damaged_program_text(files: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "damaged.pt"
    with zipfile.ZipFile(files("fp32")) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            text = good.read(name)
            bad.writestr(name, text.replace(b"def forward", b"deX forward"))
    with pytest.raises(UsageError, match="cannot be read as a TorchScript"):
        inspect(path)


def test_without_torch(files: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = files("fp32")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match="torch"):
        inspect(path)


class _Writes(nn.Module):
    """Saves a tensor to a file whenever it is run."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.path)
        return 2 * x


class _WritesOnLoad(_Writes):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return (self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), state[0])


@pytest.mark.parametrize("module", [_Writes, _WritesOnLoad])
def test_program_that_writes_files_is_neither_run_nor_loaded(
    module: type[_Writes], tmp_path: Path
) -> None:
    proof = tmp_path / "proof"
    torch.jit.script(module(str(proof))).save(str(tmp_path / "writes.pt"))
    program = torch.jit.load(str(tmp_path / "writes.pt"))
    if module is _Writes:
        program(torch.zeros(1, 3, 8, 8))
    assert proof.exists(), "the program does write"
    proof.unlink()
    found = inspect(tmp_path / "writes.pt")
    assert not proof.exists()
    assert any("not run" in note and "(save)" in note for note in found.notes)
    assert found.macs is None


@pytest.mark.parametrize(
    ("line", "effect"),
    [
        ('x.save("/tmp/f")', "save"),
        ('getattr(torch, "from_file")("/tmp/f")', "from_file"),
        ('getattr(x, "sa\\x76e")("/tmp/f")', "save"),
        ("t = torch", "torch under another name"),
        ("o = ops", "ops under another name"),
        ('ops.c10d.send([x], "group", 0, 0)', "c10d::send"),
        ('f = r"\\"', "code that cannot be read"),
    ],
)
def test_effects_in_other_forms_are_found(
    files: Callable[[str], Path], tmp_path: Path, line: str, effect: str
) -> None:
    path = tmp_path / "rewritten.pt"
    with zipfile.ZipFile(files("frozen")) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            text = good.read(name)
            if name.endswith(".py"):
                text = text.replace(b"    return ", f"    {line}\n    return ".encode())
                name = name.replace(".py", ".PY")
            bad.writestr(name, text)
    found = torchscript_code.read(path)
    assert effect in found.effects
    assert "aten::linear" in found.products
    assert torchscript_code.read(files("frozen")).effects == ()
