"""Changed programs are proven to compute the same, or the first node that does not is named."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from benchmarks.models import untrained
from edgekit import quality
from edgekit.errors import SourceError
from edgekit.quantize import graph
from edgekit.quantize.equal import first_difference, prove_equal
from edgekit.quantize.prepare import as_module, export_program, prepare, run
from tests.quantize.nets import build

SHAPE = (1, 3, 16, 16)


class Net(nn.Module):
    """Three convolutions with batch norms, the last two one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        return x.mean((2, 3)), self.head(self.body(x)).mean((2, 3))


def program_of(module: nn.Module, sample: torch.Tensor) -> fx.GraphModule:
    exported, _ = prepare(export_program(module, (sample,)), (sample,))
    return as_module(exported)


def test_what_folding_leaves_is_proven_in_float32() -> None:
    module, samples = build(Net), [(torch.randn(SHAPE),) for _ in range(3)]
    assert (
        prove_equal(module, program_of(module, samples[0][0]), samples, ["a", "b"], "folding") > 100
    )


@pytest.mark.parametrize(
    ("layer", "output", "module"), [(0, "a", "stem"), (1, "b", "body"), (2, "b", "head")]
)
def test_a_difference_names_the_output_and_where_it_begins(
    layer: int, output: str, module: str
) -> None:
    original, sample = build(Net), torch.randn(SHAPE)
    gm = program_of(original, sample)
    broken = list(graph.layers(gm))[layer].weight
    graph.set_attribute(gm, broken, graph.attribute(gm, broken) * 1.5)
    with pytest.raises(SourceError, match=rf"output '{output}' agrees to \d+\.") as caught:
        prove_equal(original, gm, [(sample,)], ["a", "b"], "folding")
    assert f"({module}.0, " in str(caught.value)
    assert "test_equal.py:" in str(caught.value), "with its line"
    node = first_difference(original, gm, (sample,))
    assert node is not None and node.target == graph.ATEN.conv2d.default


def test_a_deep_network_that_amplifies_rounding_is_proven_in_float64() -> None:
    """MobileNetV2 without training, whose batch norms have the statistics of their inputs."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 64, 64)
    module = untrained.settle(untrained.network("mobilenet_v2"), images)
    sample = torch.randn(1, 3, 64, 64)
    gm = program_of(module, sample)
    held = {name: value.clone() for name, value in module.state_dict().items()}
    wanted = module(sample).detach().numpy()
    assert quality.sqnr_db(wanted, run(gm, (sample,))[0].numpy()) < 100, "else nothing is tested"
    assert prove_equal(module, gm, [(sample,)], ["output"], "folding") > 100
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in held.items())
    assert run(gm, (sample,))[0].dtype == torch.float32


def test_a_program_that_casts_on_its_way_is_judged_in_float32() -> None:
    class Casts(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.to(torch.float32), y]) @ torch.ones(4, 4, dtype=torch.float32)

    module, sample = build(Casts), (torch.randn(4, 4), torch.randn(4, 4))
    exported, _ = prepare(export_program(module, sample), sample)
    assert prove_equal(module, as_module(exported), [sample], ["output"], "folding") > 100

    class Others(Casts):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return 1.1 * super().forward(x, y)

    with pytest.raises(SourceError, match="agrees to 20"):
        prove_equal(build(Others), as_module(exported), [sample], ["output"], "folding")


def test_a_value_on_the_way_that_is_no_number_hides_no_error() -> None:
    class Logs(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * torch.where(x > 0, torch.log(x), x)

    class Others(Logs):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(1.1 * x)

    sample = torch.randn(1, 64)
    with pytest.raises(SourceError, match=r"agrees to .* begins at node 'mul'"):
        prove_equal(
            build(Others), program_of(build(Logs), sample), [(sample,)], ["output"], "folding"
        )
