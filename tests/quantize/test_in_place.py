"""TorchScript's activations write where they read, but only where nobody else reads."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit import quality
from tests.quantize.cases import Case, case


class Activated(nn.Module):
    """Three values that only an activation reads; an input and two features that are read again,
    one of them as a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        alone = nn.functional.silu(self.first(x))
        both = self.second(alone)
        kept = both + nn.functional.silu(both)
        third = self.third(nn.functional.hardswish(kept))
        seen = nn.functional.silu(third.flatten(2)).reshape(third.shape)
        last = self.last(torch.sigmoid(seen) + third)
        return nn.functional.silu(last), nn.functional.silu(x)


@pytest.fixture(scope="module")
def activated(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    return case(Activated().eval(), tmp_path_factory.mktemp("activated"), ["x"])


@pytest.mark.parametrize(("recipe", "least_db"), [("fp32", 120.0), ("static_wi8_ai8", 25.0)])
def test_what_is_read_twice_is_not_written_over(
    activated: Case, recipe: str, least_db: float, tmp_path: Path
) -> None:
    artifact = activated.export("torchscript", recipe, tmp_path)
    given = activated.run(artifact, "torchscript", tmp_path)
    for wanted, got in zip(activated.outputs, given, strict=True):
        assert quality.sqnr_db(wanted, got) > least_db
    graph = torch.jit.load(str(artifact)).graph
    found = Counter(node.kind() for node in graph.nodes())
    # FX's own dequantize gives each reader a value of its own.
    assert found["aten::silu_"] >= 2 and (recipe != "fp32" or found["aten::silu"] >= 2)


@pytest.mark.parametrize("activation", [nn.PReLU(8), nn.GLU(1), nn.Hardshrink()])
def test_activations_that_cannot_write_where_they_read_convert(
    activation: nn.Module, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 1), activation)
    given = case(module.eval(), tmp_path, ["x"])
    (found,) = given.sqnr_db(given.export("torchscript", "fp32", tmp_path / "made"), "torchscript")
    assert found > 120
