"""Models that are legal but odd: what exporters do with them, or how they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import quality
from edgekit.errors import ExportFailed
from tests.quantize.cases import RUNTIMES, case, case_of


class Attention(nn.Module):
    """An argument with the name of a Python function, attention, and the input as an output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 5)

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.conv(input).flatten(2).transpose(1, 2)[:, :64]
        q, k, v = self.qkv(tokens).reshape(1, 64, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(mixed.transpose(1, 2).flatten(2)), input


def test_onnx_ranges_come_from_all_samples_whatever_the_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Attention().eval(), tmp_path, ["input"], first=0.02)
    artifact = given.export("onnx", "static_wi8_ai8", tmp_path / "out")
    mixed, unchanged = given.run(artifact, "onnx", tmp_path)
    assert quality.sqnr_db(given.outputs[0], mixed) > 30
    assert quality.sqnr_db(given.outputs[1], unchanged) > 40


class Branch(nn.Module):
    """A residual branch of almost nothing, as ConvNeXt has before it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        result: torch.Tensor = (x + 1e-6 * self.branch(x)).relu()
        return result


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_branch_of_almost_nothing_is_added(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Branch().eval(), tmp_path, ["x"])
    artifact = given.export(runtime, "static_wi8_ai8", tmp_path / "out")
    (found,) = given.run(artifact, runtime, tmp_path)
    assert quality.sqnr_db(given.outputs[0], found) > 30


class Clamped(nn.Module):
    """ReLU6 and Hardtanh after an addition, where no layer can take them in."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = self.a(x), self.b(x)
        return self.head(nn.functional.relu6(4 * (a + b))), nn.functional.hardtanh(a - b)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_clamps_after_an_addition(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Clamped().eval(), tmp_path, ["x"])
    artifact = given.export(runtime, "static_wi8_ai8", tmp_path / "out")
    for wanted, got in zip(given.outputs, given.run(artifact, runtime, tmp_path), strict=True):
        assert quality.sqnr_db(wanted, got) > 30


class Upsampled(nn.Module):
    """A clamp behind a transposed convolution, which FX does not quantize."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.ConvTranspose2d(3, 4, 2, 2), nn.Conv2d(4, 6, 3, 2)
        self.up.weight.data *= 20

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(nn.functional.relu6(self.up(x)))
        return found


class Pooled(nn.Module):
    """A few averages per channel, as VGG has them: float in TorchScript, behind channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.adaptive_avg_pool2d(torch.relu(self.conv(x)), 2)
        found: torch.Tensor = self.head(x.flatten(1))
        return found


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_averages_are_flattened(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Pooled().eval(), tmp_path, ["x"])
    artifact = given.export(runtime, "static_wi8_ai8", tmp_path / "out")
    assert given.sqnr_db(artifact, runtime)[0] > 30


class GroupedUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 8, 3, 2), nn.ConvTranspose2d(8, 8, 2, 2, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.up(torch.relu(self.conv(x)))
        return found


@pytest.mark.parametrize("net", [Upsampled, GroupedUp])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_transposed_convolutions(net: type[nn.Module], runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(net().eval(), tmp_path, ["x"])
    artifact = given.export(runtime, "static_wi8_ai8", tmp_path / "out")
    assert given.sqnr_db(artifact, runtime)[0] > 30


class Whole(nn.Module):
    """Arithmetic on token numbers before an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 4)
        self.first = nn.Buffer(torch.tensor([[3]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.cat([self.first, x * 2 + 1], 1)
        found: torch.Tensor = self.head(self.table(places))
        return found


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_arithmetic_on_integers_stays_on_integers(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sets = [[np.random.default_rng(i).integers(0, 9, (16, 1, 5))] for i in range(2)]
    given = case_of(Whole().eval(), tmp_path, ["x"], *sets)
    artifact = given.export(runtime, "static_wi8_ai8", tmp_path / "out")
    assert given.sqnr_db(artifact, runtime)[0] > 30


class Steep(nn.Module):
    """Products far beyond the clamp that follows them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        self.first.weight.data *= 2000

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x.mean((2, 3))[:, :1].expand(1, 8))
        found: torch.Tensor = self.last(nn.functional.hardtanh(y, 0.0, 0.02))
        return found


def test_executorch_loads_layers_that_their_clamp_cuts_off(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Steep().eval(), tmp_path, ["x"])
    artifact = given.export("executorch", "static_wi8_ai8", tmp_path / "out")
    assert given.sqnr_db(artifact, "executorch")[0] > 15


class Outputs(nn.Module):
    """Gives logits, with what ``also`` makes of the features and the logits."""

    def __init__(self, also: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        self.also = also

    def forward(self, x: torch.Tensor) -> object:
        features = torch.relu(self.conv(x)).mean((2, 3))
        logits = self.head(features)
        return logits, self.also(features, logits)


@pytest.mark.parametrize(
    "also",
    [
        pytest.param(lambda features, logits: features, id="used inside"),
        pytest.param(lambda features, logits: logits, id="twice"),
        pytest.param(lambda features, logits: [features, logits, features, logits], id="often"),
    ],
)
def test_tflite_outputs_that_share_a_value(
    also: Callable[[torch.Tensor, torch.Tensor], object], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    given = case(Outputs(also).eval(), tmp_path, ["x"])
    artifact = given.export("tflite", "static_wi8_ai8", tmp_path / "out")
    for wanted, got in zip(given.outputs, given.run(artifact, "tflite", tmp_path), strict=True):
        assert quality.sqnr_db(wanted, got) > 35


def test_what_cannot_be_converted_is_said(tmp_path: Path) -> None:
    given = case(Outputs(lambda _, logits: logits.reshape(logits.shape)).eval(), tmp_path, ["x"])
    message = "cannot handle an output that is also used inside the model, or returned twice"
    with pytest.raises(ExportFailed, match=message) as caught:
        given.export("tflite", "static_wi8_ai8", tmp_path / "out")
    assert "--runtimes" in caught.value.remedy


class Tokens(nn.Module):
    """Token ids to logits and a class, both of 64 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        known = self.embedding(ids) * mask[..., None].to(torch.float32)
        logits = self.head(known.sum(1))
        return logits, logits.argmax(-1)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_token_ids_go_in_and_a_class_comes_out(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    stacks = [
        [random.integers(0, 50, (n, 1, 12)), random.integers(0, 2, (n, 1, 12))] for n in (16, 24)
    ]
    given = case_of(Tokens().eval(), tmp_path, ["ids", "mask"], *stacks)
    for recipe, least in (("fp32", 90.0), ("dynamic_wi8_afp32", 25.0)):
        artifact = given.export(runtime, recipe, tmp_path / recipe)
        logits, classes = given.run(artifact, runtime, tmp_path)
        assert quality.sqnr_db(given.outputs[0], logits) > least
        assert classes.dtype == np.int64 and np.array_equal(classes, logits.argmax(-1))


class Gated(nn.Module):
    """A value times its average, averaged: for ONNX, pooling becomes a mean, too, but an earlier
    one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        x = x * nn.functional.adaptive_avg_pool2d(x, 1)
        found: torch.Tensor = self.head(x.mean((2, 3)))
        return found


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_value_does_not_get_the_range_of_a_namesake(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    gated = case(Gated().eval(), tmp_path, ["x"])
    (found,) = gated.sqnr_db(gated.export(runtime, "static_wi8_ai8", tmp_path / "made"), runtime)
    assert found > 40
