"""Models with what networks for images seldom have: preparation copes, or says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit import quality
from edgekit.errors import SourceError
from edgekit.quantize import graph
from edgekit.quantize.engine import prepare_model
from edgekit.quantize.equal import prove_equal
from edgekit.quantize.graph import ATEN
from edgekit.quantize.prepare import as_float32, as_module, export_program, flatten, prepare, run
from tests.quantize.cases import RUNTIMES, case
from tests.quantize.nets import build


def prepared(module: nn.Module, *inputs: torch.Tensor) -> tuple[torch.fx.GraphModule, set[str]]:
    """The prepared program, which was checked to compute what the module computes."""
    module.eval().requires_grad_(False)
    program, passes = prepare(export_program(module, inputs), inputs)
    gm = as_module(program)
    for expected, found in zip(flatten(module(*inputs)), run(gm, inputs), strict=True):
        assert expected.dtype == found.dtype
        assert quality.sqnr_db(expected.numpy(), found.numpy()) > 100
    return gm, set(passes)


def targets(gm: torch.fx.GraphModule) -> list[object]:
    return [node.target for node in gm.graph.nodes if node.op == "call_function"]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


class Tied(nn.Module):
    """An embedding whose table is the head's weight, and two layers with one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)
        self.middle = nn.Linear(4, 6)
        self.head = nn.Linear(4, 6)
        self.head.weight = self.table.weight
        self.head.bias = self.middle.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.table(x)
        both: torch.Tensor = self.middle(y) + self.head(y)
        return both


def test_tied_parameters_are_separated() -> None:
    gm, _ = prepared(build(Tied), torch.tensor([[0, 3, 5]]))
    middle, head = graph.layers(gm)
    assert middle.bias != head.bias
    (lookup,) = (node for node in gm.graph.nodes if node.target == ATEN.embedding.default)
    assert lookup.args[0].target != head.weight


class Alphas(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        scaled = torch.add(x, y, alpha=2) + torch.sub(x, 1.0, alpha=3)
        return scaled - torch.sub(x, y, alpha=0.5) + torch.add(x, y, alpha=1)


def test_factors_of_sums_become_products() -> None:
    gm, passes = prepared(Alphas(), normal(2, 3), normal(2, 4)[:, 1:])
    assert "spell_out_alpha" in passes
    assert not any(node.kwargs for node in gm.graph.nodes if node.target in graph.ADDITIONS)
    assert targets(gm).count(ATEN.mul.Tensor) == 2


class Rows(nn.Module):
    """Batch norm over axis 1, which is not the axis of the linear layer's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(self.linear(x))
        return normed


def with_statistics(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.normal_()  # type: ignore[union-attr]
            part.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return module


@pytest.mark.parametrize(("shape", "folds"), [((3, 4), True), ((3, 5, 4), False)])
def test_batch_norm_is_folded_only_along_the_channels(shape: tuple[int, ...], folds: bool) -> None:
    _, passes = prepared(with_statistics(build(Rows)), normal(*shape))
    assert ("fold_batch_norm" in passes) is folds


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [3, 4, (2, 5)])
def test_worded_padding_of_2d_convolutions(kernel: int | tuple[int, int], padding: str) -> None:
    module = nn.Conv2d(3, 4, kernel, padding=padding, dilation=(1, 3))
    gm, passes = prepared(module, normal(1, 3, 13, 14))
    assert "number_paddings" in passes
    uneven = padding == "same" and kernel != 3
    assert targets(gm) == [ATEN.pad.default] * uneven + [ATEN.conv2d.default]


def test_worded_padding_of_1d_convolutions() -> None:
    module = nn.Sequential(nn.Conv1d(3, 4, 4, padding="same"), nn.BatchNorm1d(4))
    gm, _ = prepared(with_statistics(module), normal(1, 3, 13))
    assert targets(gm) == [ATEN.pad.default, ATEN.conv1d.default]


class Casts(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        same = x.to(torch.float32, copy=True).type_as(x).detach() + x.float()
        return same, y.to(torch.float32) + 1


def test_only_casts_to_another_dtype_stay() -> None:
    gm, _ = prepared(Casts(), normal(2, 3), torch.tensor([[1, 2]]))
    assert targets(gm).count(ATEN._to_copy.default) == 1
    assert len(targets(gm)) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_cast_and_noted(dtype: torch.dtype, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU()).to(dtype).eval()
    found = prepare_model(module, (normal(1, 4).to(dtype),), ["x"], tmp_path)
    assert [spec.dtype for spec in (*found.inputs, *found.outputs)] == ["float32"] * 2
    assert str(dtype).removeprefix("torch.") in found.notes[0]
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_float32_and_integers_are_left_alone() -> None:
    module = build(Tied)
    inputs, notes = as_float32(module, (torch.tensor([[1]]), normal(1, 1).expand(2, 3)))
    assert [value.dtype for value in inputs] == [torch.int64, torch.float32]
    assert inputs[1].is_contiguous()
    assert notes == ()


class Halves(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.half() * 2).float()


def test_half_precision_inside_is_refused() -> None:
    with pytest.raises(SourceError, match=r"casts to torch\.float16 .* '_to_copy'"):
        export_program(Halves(), (normal(1, 3),))


class Doubles(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()


def test_an_output_of_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="'output' is of dtype float64"):
        prepare_model(Doubles(), (normal(1, 3),), ["x"], tmp_path)


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen: torch.Tensor = torch.cond(x.sum() > 0, torch.neg, torch.abs, (x,))
        return chosen


def test_control_flow_is_refused_by_the_name_of_its_node() -> None:
    with pytest.raises(SourceError, match="cond at node 'cond'"):
        export_program(Branches(), (normal(1, 3),))


class Counts(nn.Module):
    """Counts its runs."""

    runs: torch.Tensor

    def __init__(self, *, reads: bool) -> None:
        super().__init__()
        self.reads = reads
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return torch.relu(x) * self.runs if self.reads else torch.relu(x)


def test_state_that_is_read_is_refused_by_its_name() -> None:
    with pytest.raises(SourceError, match="buffer 'runs'"):
        prepared(Counts(reads=True), normal(2, 3))


def test_state_that_is_never_read_is_forgotten() -> None:
    gm, _ = prepared(Counts(reads=False), normal(2, 3))
    assert targets(gm) == [ATEN.relu.default]


class Overwrites(nn.Module):
    def forward(self, x: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x.sub_(0.5)
        places.add_(1)
        return x.relu(), places * 2


def test_inputs_that_the_model_overwrites(tmp_path: Path) -> None:
    module, samples = build(Overwrites), [(normal(2, 3), torch.arange(3))]
    before = [value.clone() for value in samples[0]]
    program, _ = prepare(export_program(module, samples[0]), samples[0])
    gm = as_module(program)
    assert ATEN.copy_.default not in targets(gm)
    assert prove_equal(module, gm, samples, ["x", "places"], "a test") > 100
    assert all(torch.equal(a, b) for a, b in zip(samples[0], before, strict=True))


class Modes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            x = self.linear(x)
        with torch.autocast("cpu", enabled=False):
            y: torch.Tensor = self.linear(x)
        return y


def test_gradient_and_autocast_modes_are_no_control_flow() -> None:
    gm, _ = prepared(build(Modes), normal(1, 3))
    assert targets(gm) == [ATEN.linear.default] * 2


class Twice(nn.Module):
    """One convolution on tensors of three different scales."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv(x))
        shared: torch.Tensor = self.conv(4 * torch.relu(self.conv(y)))
        return shared


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_shared_layers_quantize_like_others(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Twice().eval().requires_grad_(False), tmp_path, ["x"])
    (tmp_path / "out").mkdir()
    artifact = given.export(runtime, "static_wi8_ai8", tmp_path / "out")
    (found,) = given.run(artifact, runtime, tmp_path)
    assert quality.sqnr_db(given.outputs[0], found) > 35
