"""The tree of modules made for TorchScript computes what the program does, and quantizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit import quality
from edgekit.errors import ExportFailed
from edgekit.quantize.prepare import as_module, export_program, prepare, run
from edgekit.quantize.rebuild import to_modules
from tests.quantize.cases import case
from tests.quantize.nets import build, image_inputs


class Rows(nn.Module):
    """1-D convolutions, strided, padded and grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(3, 8, 5, padding=2, stride=2)
        self.b = nn.Conv1d(8, 4, 3, groups=4, dilation=2)
        self.c = nn.Conv1d(4, 6, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.c(torch.relu(self.b(torch.relu(self.a(x.flatten(2))))))
        return y


class Pools(nn.Module):
    """A max-pool that rounds its size up, on 31 x 31 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 3, 2), nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.pool(self.conv(x))
        return y


class Recurrent(nn.Module):
    """An LSTM, whose first state is made of constants and whose last one is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(32, 8, batch_first=True)
        self.head = nn.Linear(8, 4)
        self.register_buffer("shift", torch.arange(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(x[:, 0])
        shifted: torch.Tensor = self.head(y) + self.shift.view(1, 4)  # type: ignore[operator]
        return shifted


class LayerScale(nn.Module):
    """Products, sums and differences whose first operand is a constant, as layer scales are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("scale", torch.linspace(0.2, 2, 4).view(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale: torch.Tensor = self.scale  # type: ignore[assignment]
        mixed: torch.Tensor = scale - (scale + scale * self.conv(x))
        return mixed.relu()


NETS = [Rows, Pools, Recurrent, LayerScale]


def rebuilt(module: nn.Module, *inputs: torch.Tensor) -> torch.fx.GraphModule:
    return to_modules(as_module(prepare(export_program(module, inputs), inputs)[0]))


@pytest.mark.parametrize("net", NETS)
def test_computes_what_the_module_computes(net: type[nn.Module]) -> None:
    module, sample = build(net), torch.from_numpy(image_inputs(1)[0])
    found = run(rebuilt(module, sample), (sample,))[0]
    assert quality.sqnr_db(module(sample).numpy(), found.numpy()) > 100


@pytest.mark.parametrize("net", NETS)
def test_quantizes(net: type[nn.Module], tmp_path: Path) -> None:
    given = case(build(net), tmp_path, ["x"])
    artifact = given.export("torchscript", "static_wi8_ai8", tmp_path / "out")
    (found,) = given.run(artifact, "torchscript", tmp_path)
    assert quality.sqnr_db(given.outputs[0], found) > 30


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.add(x, x, alpha=2)


def test_arguments_that_would_be_dropped_are_refused() -> None:
    inputs = (torch.ones(1, 3),)
    with pytest.raises(ExportFailed, match=r"aten\.add\.Tensor at node 'add' .* alpha"):
        to_modules(as_module(export_program(Scaled(), inputs)))
