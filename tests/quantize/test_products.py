"""Products with a constant matrix are linear layers, however they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN
from edgekit.quantize.inspect import inspect_file
from edgekit.quantize.promise import promised_share
from edgekit.quantize.recipes import RECIPES
from tests.quantize.cases import RUNTIMES, Case, case_of


class Written(nn.Module):
    """As GPT-2 and CLIP write them, and one of a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.bias = nn.Parameter(torch.randn(16, 32) / 4), nn.Parameter(torch.randn(32))
        self.down, self.out = nn.Parameter(torch.randn(32, 16) / 6), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(torch.addmm(self.bias, x[0], self.up))
        y = y @ self.down
        return y, self.out(y[0])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    sets = [[rng.normal(size=(16, 1, 5, 16)).astype(np.float32)] for _ in range(2)]
    return case_of(Written().eval(), tmp_path_factory.mktemp("written"), ["x"], *sets)


def test_each_is_a_layer(written: Case) -> None:
    assert [x.node.target for x in graph.layers(written.gm)] == [ATEN.linear.default] * 3
    assert all(x.bias is not None for x in graph.layers(written.gm))


@pytest.mark.parametrize("recipe", ["static_wi8_ai8", "dynamic_wi8_afp32"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_each_is_int8(written: Case, runtime: str, recipe: str, tmp_path: Path) -> None:
    artifact = written.export(runtime, recipe, tmp_path)
    share = inspect_file(artifact).int8_mac_share
    example = [torch.from_numpy(stack[0]) for stack in written.inputs]
    promised = promised_share(written.gm, example, RECIPES[recipe])
    assert share is not None and promised is not None and share >= promised > 0.9
    assert min(written.sqnr_db(artifact, runtime)) > 20


class Conditional(nn.Module):
    """What is no such product: factors, computed matrices, biases of another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(3, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scaled = torch.addmm(self.bias[:1, 0], x, self.matrix, beta=2.0)
        return scaled, torch.addmm(self.bias, x, self.matrix), x @ x.mT


def test_other_products_stay_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sets = [[rng.normal(size=(4, 3, 4)).astype(np.float32)] for _ in range(2)]
    given = case_of(Conditional().eval(), tmp_path, ["x"], *sets)
    assert not list(graph.layers(given.gm))
