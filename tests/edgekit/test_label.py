"""An artifact may only be called INT8 where all that it multiplies is seen to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.pipeline.plan import Candidate
from edgekit.pipeline.quantizing import _broken_promise
from edgekit.pipeline.step_results import ExportResult
from edgekit.quantize.recipes import MIN_INT8_MAC_SHARE, RECIPES
from edgekit.types import Inspection


def _message(found: Inspection, recipe: str = "static_wi8_ai8") -> str:
    candidate = Candidate("net", "onnx", RECIPES[recipe], None, Path("export"), Path("evaluate"))
    share = MIN_INT8_MAC_SHARE.get(recipe)
    broken = _broken_promise(candidate, ExportResult(RECIPES[recipe], share, {}, found, "", 0))
    return broken.message if broken else ""


def _found(
    share: float | None, dynamic: float | None = 0.0, uncounted: tuple[str, ...] = ()
) -> Inspection:
    return Inspection(share, None, dynamic, uncounted_ops=uncounted)


def test_all_int8_keeps_the_promise() -> None:
    assert _message(_found(0.97)) == ""


def test_float_promises_nothing() -> None:
    assert _message(_found(None, None, ("aten::lstm",)), "fp32") == ""


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (_found(0.9), "only 90% of its multiply-accumulates are in int8"),
        (_found(1.0, dynamic=0.1), "only 90% of its"),
        (_found(1.0, uncounted=("Attention", "Einsum")), "seen to be in int8: Attention, Einsum."),
        (_found(None, None, ("LSTM",)), "seen to be in int8: LSTM."),
        (_found(None, None), "no convolution or matrix product in it, so INT8 gives nothing here"),
    ],
)
def test_what_breaks_it(found: Inspection, message: str) -> None:
    assert message in _message(found)
