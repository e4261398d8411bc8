"""Random networks on every runtime: two real ones, and how what was found is judged."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

from benchmarks import agreement
from benchmarks.agreement import Cell
from benchmarks.models.random_network import INPUT, OF_ONE, OF_TWO, RandomNetwork
from edgekit import registry


def test_two_networks_agree_everywhere() -> None:
    command = [sys.executable, "-m", "benchmarks.agreement", "--quick", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    document = json.loads(ran.stdout)
    assert len(document["rows"]) == 2 and document["notes"] == []
    assert all(
        float(row[f"{name} dB"]) > 20 for row in document["rows"] for name in registry.RUNTIMES
    )


def row(**changes: Cell) -> agreement.Row:
    """All good but for the INT8 of what is named."""
    return {
        (name, recipe): (changes.get(name) if recipe != "fp32" else None) or Cell(120.0)
        for name in registry.RUNTIMES
        for recipe in agreement.RECIPES
    }


def test_what_fails_or_is_far_from_the_rest_is_named() -> None:
    rows = {0: row(), 7: row(tflite=Cell(30.0), onnx=Cell(None, "no such operator"))}
    report = agreement.evaluate(rows, {})
    assert report.notes == [
        "network 7, tflite static_wi8_ai8: 30.0 dB",
        "network 7, onnx static_wi8_ai8: no such operator",
    ]
    assert [bar.value for bar in report.bars] == [1.0, 7 / 8, 6 / 8]
    assert [bar.kept for bar in report.bars] == [True, False, False]


def test_every_operator_keeps_the_shape_and_numbers_are_reproducible() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 16, 16)
    for make in OF_ONE:
        assert make().eval()(x).shape == x.shape
    for make in OF_TWO:
        assert make().eval()(x, x + 1).shape == x.shape
    image = torch.randn(INPUT)
    for number in range(20):
        first, again = RandomNetwork(number)(image), RandomNetwork(number)(image)
        assert first.shape == (1, 6) and torch.equal(first, again)
