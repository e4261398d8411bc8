"""Each decomposition on the runtimes that need it: the file is made, runs, and is exact."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit import quality
from edgekit.quantize import check, decompositions
from edgekit.quantize.decompositions import DECOMPOSITIONS, decompose
from edgekit.quantize.prepare import as_module, export_program, prepare, run
from tests.quantize.cases import case


@dataclass(frozen=True)
class Sample:
    """A function of features (1, 8, 12, 12) that needs the decomposition ``name``."""

    name: str
    function: Callable[[torch.Tensor], torch.Tensor]


def tokens(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).transpose(1, 2)


def attention(x: torch.Tensor) -> torch.Tensor:
    y = tokens(x)
    return F.scaled_dot_product_attention(y, 2 * y, y + 1)


def plain_attention(x: torch.Tensor) -> torch.Tensor:
    y = tokens(x)[0]
    mask = torch.ones(len(y), len(y), dtype=torch.bool).tril()
    return F.scaled_dot_product_attention(y, y, y, attn_mask=mask)


TAPS = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
MIX = torch.rand(8, 8, 1, 1, generator=torch.Generator().manual_seed(0))
LEVELS = MIX[0]

SAMPLES = {
    "windows alike": Sample("adaptive_max_pool", lambda x: F.adaptive_max_pool2d(x, (3, 4))),
    "windows that differ": Sample("adaptive_max_pool", lambda x: F.adaptive_max_pool2d(x, (5, 1))),
    "local response": Sample("planar_average", lambda x: F.local_response_norm(x, 5)),
    "output padding": Sample(
        "output_padding", lambda x: F.conv_transpose2d(x, TAPS, None, 2, 1, 1)
    ),
    "less than a number": Sample("constant_first", lambda x: 1 - x),
    "less than numbers": Sample("constant_first", lambda x: LEVELS - F.conv2d(x, MIX)),
    "a number divided": Sample("constant_first", lambda x: 2 / (F.conv2d(x, MIX) + 1)),
    "numbers divided": Sample("constant_first", lambda x: LEVELS / (F.conv2d(x, MIX) + 1)),
    "batches of attention": Sample("attention_rank", attention),
    "attention of one": Sample("attention_rank", plain_attention),
}


class Net(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(torch.relu(self.conv(x)[:, :, :12, :12]))


def net(sample: str) -> nn.Module:
    torch.manual_seed(0)
    return Net(SAMPLES[sample].function).eval().requires_grad_(False)


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_program_computes_the_same_and_names_stay(sample: str) -> None:
    module, x = net(sample), (torch.randn(1, 3, 32, 32),)
    program, _ = prepare(export_program(module, x), x)
    (before,) = run(program, x)
    names = {node.name for node in as_module(program).graph.nodes if len(node.users) == 1}
    done = decompose(program, DECOMPOSITIONS[SAMPLES[sample].name][0])
    assert [name for name, _ in done.parts.values()] == [SAMPLES[sample].name]
    (after,) = run(program, x)
    assert quality.sqnr_db(before.numpy(), after.numpy()) > 100
    kept = {node.name for node in as_module(program).graph.nodes}
    assert names - kept <= set(done.parts), "what is not taken apart is called as before"


@pytest.mark.parametrize(
    ("sample", "runtime"),
    [(name, runtime) for name, s in SAMPLES.items() for runtime in DECOMPOSITIONS[s.name]],
)
def test_it_converts_runs_and_is_announced(sample: str, runtime: str, tmp_path: Path) -> None:
    given = case(net(sample), tmp_path, ["x"])
    artifact = given.export(runtime, "fp32", tmp_path / "out")
    (found,) = given.run(artifact, runtime, tmp_path)
    assert quality.sqnr_db(given.outputs[0], found) > 100
    payload = {"runtime": runtime, "program": str(given.folder / "program.pt2")}
    verdicts = check.check_worker(payload)
    assert all(verdict["fate"] != "fails" for verdict in verdicts.values())
    rewritten = [verdict["rewritten"] for verdict in verdicts.values() if verdict["rewritten"]]
    assert rewritten == [SAMPLES[sample].name]


def test_what_it_put_in_is_calibrated_for_executorch(tmp_path: Path) -> None:
    """Ranges are known for the program as it was; the new operators' are observed."""
    given = case(net("windows that differ"), tmp_path, ["x"])
    artifact = given.export("executorch", "static_wi8_ai8", tmp_path / "out")
    assert given.sqnr_db(artifact, "executorch")[0] > 25


def test_a_number_divided_by_integers_is_left_to_the_converter() -> None:
    """Integers have no power of -1."""

    class Counted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 / (1 + (x > 0).long().sum((1, 2, 3)))

    x = (torch.randn(1, 3, 8, 8),)
    program, _ = prepare(export_program(Counted(), x), x)
    assert decompose(program, "tflite").parts == {}


def test_inputs_are_no_constants(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x - 0.5) / 0.25 - x

    given = case(Scaled().eval(), tmp_path, ["x"])
    program = torch.export.load(tmp_path / "program.pt2")
    assert decompose(program, "tflite").parts == {}
    artifact = given.export("tflite", "fp32", tmp_path / "out")
    assert given.sqnr_db(artifact, "tflite")[0] > 100


def test_every_file_is_registered_and_has_a_sample() -> None:
    folder = Path(decompositions.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert files == set(DECOMPOSITIONS) == {sample.name for sample in SAMPLES.values()}
    for name in files:
        tree = ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree)
