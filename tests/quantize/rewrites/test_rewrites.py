"""The table of rewrites, and the small one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.errors import ConfigError
from edgekit.quantize import rewrites
from edgekit.quantize.graph import ATEN
from tests.quantize.nets import Residual, build, image_inputs
from tests.quantize.rewrites.graphs import program, rewritten, targets


def test_every_rewrite_is_in_the_table_once() -> None:
    folder = Path(rewrites.__file__).parent
    helpers = {"__init__", "edit", "factors", "layer_norms"}
    assert set(rewrites.REWRITES) == {path.stem for path in folder.glob("*.py")} - helpers


def test_an_unknown_rewrite_is_named_with_the_known_ones() -> None:
    gm = program(nn.ReLU(), torch.zeros(1, 3))
    with pytest.raises(ConfigError, match="'fold_everything'") as caught:
        rewrites.apply(gm, ["fold_everything"])
    assert "fold_hardswish" in caught.value.remedy


def test_nothing_applies_to_a_plain_network() -> None:
    x = torch.from_numpy(image_inputs(1)[0])
    gm = program(build(Residual), x)
    before = [node.format_node() for node in gm.graph.nodes]
    assert rewrites.applicable(gm) == ()
    assert [node.format_node() for node in gm.graph.nodes] == before


def test_silu_is_spelled_out() -> None:
    x = torch.randn(1, 3, 8, 8)
    count, result, db = rewritten(program(nn.SiLU(), x), "spell_out_silu", x)
    assert count == 1
    assert db > 100
    assert targets(result) == [ATEN.sigmoid.default, ATEN.mul.Tensor]
