"""Clean-up passes on graphs that a careless pass would break."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit import quality
from edgekit.quantize.graph import ATEN
from edgekit.quantize.prepare import as_module, export_program, prepare, run
from tests.quantize.cases import RUNTIMES, case


class Attention(nn.Module):
    """PyTorch's own, whose copies make the views after them possible."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.attention(x, x, x)[0]
        return found


@pytest.mark.parametrize("batch_first", [True, False])
def test_copies_that_a_view_needs_stay(batch_first: bool) -> None:
    torch.manual_seed(0)
    module, x = Attention(batch_first=batch_first).eval(), torch.randn(2, 12, 8)
    program, _ = prepare(export_program(module, (x,)), (x,))
    (found,) = run(program, (x,))
    assert quality.sqnr_db(module(x).detach().numpy(), found.numpy()) > 100


def test_other_copies_go() -> None:
    class Copies(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x.clone()).contiguous().clone() + 1

    x = torch.randn(2, 3)
    program, passes = prepare(export_program(Copies(), (x,)), (x,))
    assert "remove_no_ops" in passes
    targets = [n.target for n in as_module(program).graph.nodes if n.op == "call_function"]
    assert targets == [ATEN.relu.default, ATEN.add.Tensor]


class Pooled(nn.Module):
    """A padded input, averaged."""

    def __init__(self, pads: tuple[int, ...], value: float = 0.0, **pooling: object) -> None:
        super().__init__()
        self.pads, self.value, self.pooling = pads, value, pooling

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(x, self.pads, value=self.value)
        found: torch.Tensor = nn.functional.avg_pool2d(padded, 3, **self.pooling)  # type: ignore[arg-type]
        return found


@pytest.mark.parametrize(
    ("module", "folds"),
    [
        (Pooled((1, 1, 1, 1)), True),
        (Pooled((1, 1), stride=1), True),
        (Pooled((1, 1, 0, 0), padding=(1, 0)), True),
        (Pooled((1, 1, 1, 1), padding=1), False),
        (Pooled((2, 2, 2, 2)), False),
        (Pooled((0, 1, 0, 1)), False),
        (Pooled((1, 1, 1, 1), 0.5), False),
        (Pooled((1, 1, 1, 1), count_include_pad=False), False),
        (Pooled((1, 1, 1, 1), ceil_mode=True), False),
        (Pooled((1, 1, 1, 1), divisor_override=2), False),
        (Pooled((1, 1, 1, 1, 1, 1)), False),
    ],
)
def test_a_pad_becomes_the_average_poolings_own_where_that_is_the_same(
    module: Pooled, folds: bool
) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, 8)
    program, passes = prepare(export_program(module, (x,)), (x,))
    assert ("fold_padding" in passes) is folds
    (found,) = run(program, (x,))
    assert quality.sqnr_db(module(x).numpy(), found.numpy()) > 100


class Normalised(nn.Module):
    """Features of length one, which convolutions read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(nn.functional.normalize(self.first(x), dim=1))
        return found


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_lengths_are_not_repeated_and_convert(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    normalised = case(Normalised().eval(), tmp_path, ["x"])
    targets = [node.target for node in normalised.gm.graph.nodes]
    assert ATEN.div.Tensor in targets and ATEN.expand.default not in targets
    artifact = normalised.export(runtime, "static_wi8_ai8", tmp_path / "made")
    (found,) = normalised.sqnr_db(artifact, runtime)
    assert found > 30


class Widened(nn.Module):
    """An expansion that decides on the shape of what is computed of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1].expand(2, 5, 4) * x[:, 1:2] + x[:, 2:3].expand(2, 5, 4)


def test_expansions_that_make_the_shape_stay() -> None:
    x = torch.randn(2, 3, 4)
    module = Widened()
    program, _ = prepare(export_program(module, (x,)), (x,))
    (found,) = run(program, (x,))
    torch.testing.assert_close(found, module(x))


class Summed(nn.Module):
    """One number of another dtype, which has less say in that of the product than a tensor has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.sum().expand(4)


def test_expansions_that_make_the_dtype_stay() -> None:
    x = torch.tensor([40000, 20000, 20000, 10000], dtype=torch.int32)
    program, _ = prepare(export_program(Summed(), (x,)), (x,))
    (found,) = run(program, (x,))
    assert found.dtype == torch.int64
    torch.testing.assert_close(found, Summed()(x))


class Relaid(nn.Module):
    """A view of what is in another memory layout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).to(memory_format=torch.channels_last)
        return x.permute(0, 2, 3, 1).view(1, -1)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_memory_layouts_that_a_view_needs_stay_and_convert(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Relaid().eval(), tmp_path, ["x"])
    artifact = given.export(runtime, "static_wi8_ai8", tmp_path / "made")
    assert given.sqnr_db(artifact, runtime)[0] > 30


class Conditional(nn.Module):
    """A batch norm whose statistics, or scales, come from another input."""

    def __init__(self, *, scales: bool) -> None:
        super().__init__()
        self.conv, self.given, self.scales = nn.Conv2d(3, 4, 3), nn.Linear(5, 8), scales
        self.mean, self.variance = nn.Buffer(torch.randn(4)), nn.Buffer(torch.rand(4) + 0.5)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        first, second = self.given(z)[0].chunk(2)
        if self.scales:
            return nn.functional.batch_norm(self.conv(x), self.mean, self.variance, first, second)
        return nn.functional.batch_norm(self.conv(x), first, second.exp())


@pytest.mark.parametrize("scales", [True, False])
def test_batch_norms_that_are_computed_are_not_folded(scales: bool) -> None:
    torch.manual_seed(0)
    module, inputs = Conditional(scales=scales).eval(), (torch.randn(1, 3, 8, 8), torch.randn(1, 5))
    program, passes = prepare(export_program(module, inputs), inputs)
    assert "fold_batch_norm" not in passes
    (found,) = run(program, inputs)
    with torch.no_grad():
        torch.testing.assert_close(found, module(*inputs))


class Score(nn.Module):
    """A matrix product with one vector, which has no channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight = nn.Linear(6, 4), nn.Parameter(torch.randn(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.first(x), self.weight)


def test_a_weight_of_one_row_is_no_layer() -> None:
    torch.manual_seed(0)
    module, x = Score().eval(), torch.randn(2, 6)
    program, _ = prepare(export_program(module, (x,)), (x,))
    (found,) = run(program, (x,))
    with torch.no_grad():
        torch.testing.assert_close(found, module(x))
