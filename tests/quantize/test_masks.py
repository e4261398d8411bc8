"""Masks before a softmax are found, and with them in float INT8 keeps the attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.quantize.masks import masked_nodes
from tests.quantize.cases import RUNTIMES, Case, case
from tests.quantize.transformers import Mask, vit

MASKS: tuple[Mask, ...] = ("infinite", "filled", "finite", "thousands", "integers", "attention")


class EveryMask(nn.Module):
    """A transformer and an output for each mask."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(vit(1, mask) for mask in MASKS)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(net(x) for net in self.nets)


@pytest.fixture(scope="module")
def every_mask(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(EveryMask().eval(), tmp_path_factory.mktemp("masks"), ["x"])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_causal_attention_in_int8(every_mask: Case, runtime: str, tmp_path: Path) -> None:
    masked = sorted(masked_nodes(every_mask.gm))
    artifact = every_mask.export(runtime, "static_wi8_ai8", tmp_path / "out", float_nodes=masked)
    found = dict(zip(MASKS, every_mask.sqnr_db(artifact, runtime), strict=True))
    assert min(found.values()) > 20, found


@pytest.mark.parametrize("mask", MASKS)
def test_only_what_the_mask_passes_through_is_found(mask: Mask, tmp_path: Path) -> None:
    gm = case(vit(1, mask), tmp_path, ["x"]).gm
    masked = masked_nodes(gm)
    ops = {str(node.target).split(".")[1] for node in gm.graph.nodes if node.name in masked}
    last = "scaled_dot_product_attention" if mask == "attention" else "softmax"
    assert any(last in op for op in ops)
    assert ops.isdisjoint({"linear", "matmul", "layer_norm", "gelu", "conv2d"})


class Padded(nn.Module):
    """A mask that is computed from an input, as language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        hidden = (1.0 - real.float()) * torch.finfo(torch.float32).min
        shown: torch.Tensor = (self.scores(x) + hidden[:, None]).softmax(-1)
        return shown


def test_a_mask_computed_from_an_input(tmp_path: Path) -> None:
    from edgekit.quantize.prepare import as_module, export_program, prepare

    inputs = (torch.ones(1, 4, 8), torch.ones(1, 8, dtype=torch.int64))
    gm = as_module(prepare(export_program(Padded().eval(), inputs), inputs)[0])
    ops = [node.target for node in gm.graph.nodes if node.name in masked_nodes(gm)]
    assert [str(op).split(".")[1] for op in ops] == ["mul", "unsqueeze", "add", "softmax"]


class PaddedByIntegers(Padded):
    """The same with integers until the mask meets the scores."""

    def forward(self, x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        hidden = (1 - real) * -10000
        shown: torch.Tensor = (self.scores(x) + hidden[:, None]).softmax(-1)
        return shown


def test_a_mask_of_integers_computed_from_an_input() -> None:
    from edgekit.quantize.prepare import as_module, export_program, prepare

    inputs = (torch.ones(1, 4, 8), torch.ones(1, 8, dtype=torch.int64))
    gm = as_module(prepare(export_program(PaddedByIntegers().eval(), inputs), inputs)[0])
    ops = [node.target for node in gm.graph.nodes if node.name in masked_nodes(gm)]
    assert [str(op).split(".")[1] for op in ops] == ["mul", "unsqueeze", "add", "softmax"]


def test_sizes_and_ends_are_no_numbers_of_a_mask() -> None:
    from edgekit.quantize.prepare import as_module, export_program, prepare

    class Sliced(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(1, 2048)[:, :1500].softmax(-1)

    inputs = (torch.ones(1, 2, 1024),)
    gm = as_module(prepare(export_program(Sliced(), inputs), inputs)[0])
    assert masked_nodes(gm) == set()


def test_large_numbers_without_a_softmax_are_no_mask() -> None:
    from edgekit.quantize.prepare import as_module, export_program, prepare

    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x * 5000.0 + 1e4)

    inputs = (torch.ones(1, 4),)
    gm = as_module(prepare(export_program(Scaled(), inputs), inputs)[0])
    assert masked_nodes(gm) == set()
