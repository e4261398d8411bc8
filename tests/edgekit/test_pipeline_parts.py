"""What decides whether a step is done again, and how large a bundle's golden vectors get."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.pipeline import workspace
from edgekit.pipeline.workspace import RESULT, Workspace, load_result, making, unchanged
from edgekit.quantize.engine import prepare_model


class Call(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def digest(module: nn.Module, folder: Path, *shape: int) -> str:
    return prepare_model(module, (torch.zeros(shape or (1, 3, 8, 8)),), ["x"], folder).digest


def conv(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Conv2d(3, 4, 3).eval().requires_grad_(False)


def test_the_same_program_has_the_same_digest(tmp_path: Path) -> None:
    assert digest(conv(1), tmp_path) == digest(conv(1), tmp_path)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (conv(1), conv(2)),
        (nn.GELU(), nn.GELU(approximate="tanh")),
        (Call(lambda x: torch.add(x, x, alpha=2)), Call(lambda x: torch.add(x, x, alpha=3))),
        (
            Call(lambda x: torch.div(x, 2, rounding_mode="trunc")),
            Call(lambda x: torch.div(x, 2, rounding_mode="floor")),
        ),
    ],
)
def test_another_program_has_another_digest(
    one: nn.Module, other: nn.Module, tmp_path: Path
) -> None:
    assert digest(one, tmp_path) != digest(other, tmp_path)


def test_another_input_shape_has_another_digest(tmp_path: Path) -> None:
    module = conv(1)
    found = {
        digest(module, tmp_path, *shape) for shape in ((1, 3, 8, 8), (1, 3, 16, 16), (4, 3, 8, 8))
    }
    assert len(found) == 3


def test_a_step_is_complete_or_absent(tmp_path: Path) -> None:
    step = Workspace(tmp_path).step("load", {"a": 1})
    with pytest.raises(RuntimeError), making(step, [1]) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert not step.exists() and load_result(int, step) is None
    with making(step, [1]) as folder:
        (folder / "whole").write_text("x")
    assert load_result(int, step) == 1 and (step / "whole").exists()
    assert load_result(str, step) is None, "a result of another kind is not done"


def test_the_key_of_a_step_depends_on_every_part(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    assert space.step("a", 1, "x") == space.step("a", 1, "x")
    assert len({space.step("a", 1, "x"), space.step("a", 1, "y"), space.step("b", 1, "x")}) == 3


def test_a_changed_or_missing_file_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text("a")
    from edgekit.files import sha256_file

    known = [(str(file), sha256_file(file))]
    assert unchanged(known)
    file.write_text("b")
    assert not unchanged(known)
    file.unlink()
    assert not unchanged(known)


def test_cleaning_keeps_what_is_in_use_and_what_was_used_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "KEEP_BYTES", 2500)
    earlier = Workspace(tmp_path)
    steps = [earlier.step("old", n) for n in range(3)]
    for n, step in enumerate(steps):
        with making(step, [n]) as folder:
            (folder / "data").write_bytes(bytes(1000))
        time.sleep(0.02)
    (earlier.path / "broken").mkdir()
    now = Workspace(tmp_path)
    mine = now.step("old", 0)
    with now.opened(lambda: None):
        pass
    assert mine.exists(), "in use, though it is the oldest"
    assert not steps[1].exists() and steps[2].exists()
    assert not (now.path / "broken").exists(), "not a whole step"
    assert (steps[2] / RESULT).exists()
