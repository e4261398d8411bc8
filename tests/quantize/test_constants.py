"""What does not depend on the inputs is computed once, in preparation, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from edgekit.quantize.base import ExportRequest, export
from edgekit.quantize.constants import fold_constants
from edgekit.quantize.graph import ATEN
from edgekit.quantize.inspect import inspect_file
from edgekit.quantize.prepare import as_module, export_program, prepare, run
from edgekit.quantize.recipes import RECIPES
from tests.quantize.cases import RUNTIMES, Case, case


class Standardised(nn.Conv2d):
    """As in networks without batch norm: the weight has mean 0 and variance 1 in ``forward``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / (variance + 1e-5).sqrt()
        return nn.functional.conv2d(x, weight, self.bias, self.stride, self.padding)


class Computed(nn.Module):
    """Weights that are computed, and a mask that is written into zeros like those of windows."""

    def __init__(self) -> None:
        super().__init__()
        self.first = weight_norm(nn.Conv2d(3, 8, 3, stride=4, padding=1))
        self.second, self.last = Standardised(8, 8, 3, padding=1), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(torch.relu(self.first(x)))
        mask = x.new_zeros(x.shape[-2:])
        for place, start in enumerate((0, 2, 5)):
            mask[start : start + 3, :-2] = place
        x = x + mask.masked_fill(mask == 1, -0.5)
        found: torch.Tensor = self.last(x.mean((2, 3)))
        return found


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    return case(Computed().eval(), tmp_path_factory.mktemp("computed"), ["x"])


def test_only_the_layers_are_left(computed: Case) -> None:
    layers = (ATEN.conv2d.default, ATEN.linear.default)
    targets = [node.target for node in computed.gm.graph.nodes if node.op == "call_function"]
    assert [target for target in targets if target in layers] == [layers[0], layers[0], layers[1]]
    assert set(targets) == {*layers, ATEN.relu.default, ATEN.add.Tensor, ATEN.mean.dim}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_computed_weights_are_int8(computed: Case, runtime: str, tmp_path: Path) -> None:
    artifact = computed.export(runtime, "static_wi8_ai8", tmp_path)
    assert inspect_file(artifact).int8_mac_share == pytest.approx(1)
    (found,) = computed.sqnr_db(artifact, runtime)
    assert found > 27


class Scaled(nn.Module):
    """A learned constant, and a number that ExecuTorch makes a tensor of."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.conv = nn.Parameter(torch.randn(8, 1, 1)), nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return (x * nn.functional.relu6(x + 3) / 6 + self.shift).mean((2, 3))


def test_executorch_gives_constants_a_grid_without_another_calibration(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scaled = case(Scaled().eval(), tmp_path, ["x"])
    out = tmp_path / "model.pte"
    export(
        ExportRequest(
            runtime="executorch",
            recipe=RECIPES["static_wi8_ai8"],
            program=tmp_path / "program.pt2",
            inputs=scaled.input_specs,
            out=out,
            ranges=tmp_path / "ranges.json",
        )
    )
    (found,) = scaled.sqnr_db(out, "executorch")
    assert found > 35


class Kept(nn.Module):
    """Things that look constant."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(2049.0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        drawn = torch.rand(4)
        large = self.table[:, None] * self.table  # 4.2 million elements from 2049
        small = (self.table + 1).sum()
        return x + drawn, (x[0] + large + small).mean(), self.table * 2


def test_what_is_drawn_large_or_returned_is_computed_in_every_run() -> None:
    x = torch.zeros(4)
    gm = as_module(export_program(Kept().eval(), (x,)))
    assert fold_constants(gm) >= 1
    gm.graph.eliminate_dead_code()
    gm.recompile()
    targets = [node.target for node in gm.graph.nodes if node.op == "call_function"]
    assert ATEN.rand.default in targets
    assert ATEN.sum.default not in targets and ATEN.sum.dim_IntList not in targets
    held = [value.numel() for value in (*gm.parameters(), *gm.buffers())]
    assert max(held) == 2049
    first, second = run(gm, (x,)), run(gm, (x,))
    assert not torch.equal(first[0], second[0])
    table = torch.arange(2049.0)
    wanted = (table[:, None] * table + (table + 1).sum()).mean()
    torch.testing.assert_close(first[1], wanted)
    torch.testing.assert_close(first[2], table * 2)


class Half(nn.Module):
    """What is returned as it is, or too large to be kept, is part of what is kept, too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.number = nn.Linear(1100, 1100), nn.Parameter(torch.tensor(2.5))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.arange(1100.0).sin()
        large = torch.ones(1100, 1100).tril()
        y = self.linear(x) * large / large.sum(-1)
        return places, y + places * 2 + self.number.item()


def test_what_is_not_kept_itself_is_computed_for_what_is() -> None:
    module, x = Half().eval(), torch.randn(1100, 1100)
    program = prepare(export_program(module, (x,)), (x,))[0]
    with torch.no_grad():
        wanted = module(x)
    for found, expected in zip(run(program, (x,)), wanted, strict=True):
        torch.testing.assert_close(found, expected)


class Blocks(nn.Module):
    """Each makes the same mask for itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = (x + torch.full((64, 64), float("-inf")).triu(1)).softmax(-1)
        return x


def test_equal_constants_are_one() -> None:
    x = (torch.randn(64, 64),)
    program = prepare(export_program(Blocks(), x), x)[0]
    gm = as_module(program)
    assert [value.shape for value in (*gm.parameters(), *gm.buffers())] == [(64, 64)]
    torch.testing.assert_close(run(program, x)[0], Blocks()(*x))
