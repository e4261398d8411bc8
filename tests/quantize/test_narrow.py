"""Cutting a program down to what fails: right, bounded, and in words."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from edgekit.quantize.check import Operator
from edgekit.quantize.graph import ATEN
from edgekit.quantize.narrow import Culprit, common_module, smallest_failure
from edgekit.quantize.parts import example, kind_of_call, part
from edgekit.quantize.prepare import as_module, export_program, run


class Tower(nn.Module):
    """Twelve blocks in a row; the one in the middle has an operator that the others have not."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Linear(4, 4) for _ in range(12)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.blocks):
            x = torch.relu(block(x))
            if i == 5:
                x = torch.erf(x) + x
        return x


def tower() -> fx.GraphModule:
    torch.manual_seed(0)
    return as_module(export_program(Tower().eval(), (torch.zeros(2, 4),)))


def holds(gm: fx.GraphModule, *targets: object) -> bool:
    found = {node.target for node in gm.graph.nodes}
    return all(target in found for target in targets)


def test_one_bad_operator_is_found_with_its_line() -> None:
    culprit = smallest_failure(tower(), lambda gm: holds(gm, ATEN.erf.default))
    assert culprit is not None
    assert [operator.op for operator in culprit.operators] == ["aten.erf"]
    assert culprit.total == 26
    assert culprit.tries <= 10
    assert "test_narrow.py:" in str(culprit)


def test_a_bad_pair_is_found_as_a_pair() -> None:
    """The converter stumbles over two operators together; neither fails alone."""
    culprit = smallest_failure(tower(), lambda gm: holds(gm, ATEN.erf.default, ATEN.add.Tensor))
    assert culprit is not None
    assert [operator.op for operator in culprit.operators] == ["aten.erf", "aten.add"]
    assert "2 operators aten.erf, aten.add" in str(culprit)


def test_every_part_that_is_tried_computes_what_the_whole_does() -> None:
    seen = 0

    def fails(gm: fx.GraphModule) -> bool:
        nonlocal seen
        results = run(gm, example(gm))
        assert results and all(torch.isfinite(value).all() for value in results)
        seen += 1
        return holds(gm, ATEN.erf.default)

    assert smallest_failure(tower(), fails) is not None
    assert seen > 4


def test_what_only_the_whole_does_is_no_culprit() -> None:
    assert smallest_failure(tower(), lambda gm: False) is None


@pytest.mark.parametrize(("tries", "seconds"), [(3, 60.0), (100, 0.0)])
def test_the_search_is_bounded(tries: int, seconds: float) -> None:
    asked = 0

    def fails(gm: fx.GraphModule) -> bool:
        nonlocal asked
        asked += 1
        return holds(gm, ATEN.erf.default)

    smallest_failure(tower(), fails, max_tries=tries, max_seconds=seconds)
    assert asked <= (tries if seconds else 0)


def test_a_part_has_the_values_of_the_whole() -> None:
    gm = tower()
    nodes = [node for node in gm.graph.nodes if node.op == "call_function"]
    head, tail = part(gm, nodes[:9]), part(gm, nodes[9:])
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    (whole,) = run(gm, (x,))
    (split,) = run(tail, run(head, (x,)))
    assert torch.equal(whole, split)


def test_calls_of_one_kind_differ_in_weights_only() -> None:
    gm = tower()
    kinds = {kind_of_call(node) for node in gm.graph.nodes if node.op == "call_function"}
    assert len(kinds) == 4


def test_words() -> None:
    operators = tuple(
        Operator(f"conv_{i}", "aten.conv2d", f"features.{i}.conv", "Conv2d") for i in range(2)
    )
    assert str(Culprit(operators, 40, 8)) == "the 2 operators aten.conv2d x2 in features"
    assert common_module(["a.b.c", "a.b"]) == "a.b"
    assert common_module(["a", "b"]) == ""
    assert common_module([]) == ""
