from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common import Bar, finish
from benchmarks.quality import judging, keys, records
from benchmarks.quality.__main__ import main
from benchmarks.quality.cases import CASES, TINY, Bars, Case, Part
from benchmarks.quality.judging import Truth
from benchmarks.quality.records import Alone, Choice, Entry, Record, Side
from benchmarks.quality.sets import SETS, write_sets
from benchmarks.quality.table import report
from benchmarks.quality.timed import is_there
from benchmarks.quality.timing import Timed, pinned, rotated
from benchmarks.quality.verdicts import bars
from edgekit.files import sha256_file
from edgekit.types import OutputQuality, TensorSpec

MS = 10**6
SAMPLES = 48
SIDES: tuple[Side, Side] = ("ours", "stock")
RUNTIMES = ("executorch", "tflite", "onnx", "torchscript")


def entry(
    side: Side,
    runtime: str = "tflite",
    *,
    db: float = 30.0,
    ms: float = 1.0,
    size: int = 100,
    top1: float | None = None,
) -> Entry:
    """A made-up file with three rounds of two runs."""
    rounds = tuple((round(ms * MS * (1 + 0.001 * i)), round(ms * MS)) for i in range(3))
    return Entry(
        side,
        runtime,
        f"{side}-{runtime}",
        size_bytes=size,
        outputs=(OutputQuality("output", db, 0.1),),
        agreement=top1,
        accuracy=top1,
        noise=(10 ** (-db / 10) / SAMPLES,) * SAMPLES,
        latency_ns=rounds,
    )


def held(bars_: Bars, *entries: Entry, **fields: object) -> dict[str, bool]:
    """Which bars of a made-up record are kept, by what they say."""
    case = replace(TINY, bars=bars_)
    compared = tuple(entry.artifact for entry in entries if entry.side == "ours")
    record = Record("tiny", "key", entries=entries, compared=compared, **fields)  # type: ignore[arg-type]
    return {bar.what: bar.kept for bar in bars(case, record, seed=0)}


def test_quick_run_makes_times_and_judges_all_files() -> None:
    """The real thing with a tiny model: our pipeline, every vendor's script, every runner."""
    command = [sys.executable, "-m", "benchmarks.quality", "--quick", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    document = json.loads(ran.stdout)
    title, *rows = document["rows"]
    assert title["model, runtime, file"] == "tiny"
    names = [row["model, runtime, file"].strip() for row in rows]
    for runtime in RUNTIMES:
        for side in ("fp32", "edgekit", "stock"):
            row = rows[names.index(f"{runtime} {side}")]
            assert float(row["p50 ms"]) >= 0
            assert float(row["SQNR dB"]) > (100 if side == "fp32" else 20)
        assert document["samples"][f"tiny, {runtime}, stock, latency_ns"]
    assert {bar["what"].split(":")[0] for bar in document["bars"]} == {
        f"tiny {runtime}" for runtime in RUNTIMES
    }


def test_a_record_survives_a_run_that_was_cut(tmp_path: Path) -> None:
    log = tmp_path / "records.jsonl"
    first = Record("one", "key-1", entries=(entry("ours", top1=0.5),), seconds={"ours": 1.5})
    records.append(log, first)
    with log.open("a") as file:
        file.write('{"case": "two", "key": "key-2", "entr')
    assert records.read(log) == {"key-1": first}
    assert records.read(tmp_path / "none.jsonl") == {}


def test_what_is_done_again_depends_on_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_keys(case: Case) -> tuple[str, str, str]:
        made = keys.made_key(case, olive=False)
        return keys.stock_key(case), made, keys.timed_key(case, made, 0.3)

    def changed(case: Case) -> list[bool]:
        return [a != b for a, b in zip(before, all_keys(case), strict=True)]

    before = all_keys(TINY)
    assert changed(TINY) == [False, False, False]
    assert changed(replace(TINY, counts=(1, 2, 3))) == [True, True, True]
    assert changed(replace(TINY, max_drop=0.5)) == [False, True, True]
    assert changed(replace(TINY, rounds=9)) == [False, False, True]
    assert changed(replace(TINY, bars=Bars(sqnr_db=99.0))) == [False, False, False]
    monkeypatch.setattr(keys, "_ENGINE", ("quantize/engine.py",))
    assert changed(TINY) == [False, True, True]


def test_timing_alone_wants_files_that_were_made_and_did_not_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--quick", "--only", "time", "--work", str(tmp_path), "--json"]) == 1
    assert "not made yet" in capsys.readouterr().out
    (tmp_path / "x.onnx").write_bytes(b"model")
    digest = sha256_file(tmp_path / "x.onnx")
    record = Record("tiny", "key", entries=(Entry("ours", "onnx", "x", "x.onnx", digest),))
    assert is_there(record, tmp_path)
    (tmp_path / "x.onnx").write_bytes(b"another")
    assert not is_there(record, tmp_path)


def test_a_failure_of_ours_is_a_missed_bar_and_one_of_stock_is_none() -> None:
    failed = Entry("ours", "tflite", "x", failure="does not convert")
    broken_stock = Entry("stock", "tflite", "y", failure="crashed")
    found = held(Bars(stock_sqnr=True), entry("float"), failed, broken_stock)
    assert found == {"tiny tflite: INT8 files missing": False}
    assert held(Bars(stock_sqnr=True), entry("float"), entry("ours"), broken_stock) == {}
    assert held(Bars(), failure="nothing works") == {"tiny: it could be made": False}
    assert held(Bars(), skipped="not installed") == {"tiny: it could be made": False}


@pytest.mark.parametrize(("db", "kept"), [(22.0, True), (21.9, False)])
def test_the_worst_output_decides_the_sqnr(db: float, kept: bool) -> None:
    good = entry("ours", db=40.0)
    two = replace(good, outputs=(*good.outputs, OutputQuality("other", db, 0.1)))
    assert held(Bars(sqnr_db=22.0), entry("float"), two) == {"tiny tflite: SQNR": kept}


def test_loss_is_in_points_of_the_float_models_accuracy() -> None:
    ours = entry("ours", top1=0.970)
    found = held(Bars(loss=0.01), entry("float"), ours, float_accuracy=0.979)
    assert found == {"tiny tflite: loss of top-1": True}
    found = held(Bars(loss=0.01), entry("float"), ours, float_accuracy=0.981)
    assert found == {"tiny tflite: loss of top-1": False}


@pytest.mark.parametrize(("db", "ms", "kept"), [(30, 1.0, (True, True)), (29, 1.2, (False, False))])
def test_ours_must_not_be_worse_than_stock(db: float, ms: float, kept: tuple[bool, bool]) -> None:
    found = held(
        Bars(stock_sqnr=True, stock_latency=True),
        entry("float"),
        entry("ours", db=db, ms=ms),
        entry("stock", db=30, ms=1.0),
    )
    assert tuple(found.values()) == kept


def test_one_odd_sample_does_not_tell_whether_ours_is_worse_than_stock() -> None:
    """Both err far more on it than on all others together, ours most; on the others less."""
    usual = [1e-5 * (1 + 0.01 * i) for i in range(SAMPLES - 1)]

    def worse_than_stock(ours: list[float], stock: list[float]) -> bool:
        our, their = (
            replace(entry(side, db=-10 * math.log10(sum(noise))), noise=tuple(noise))
            for side, noise in zip(SIDES, (ours, stock), strict=True)
        )
        (kept,) = held(Bars(stock_sqnr=True), entry("float"), our, their).values()
        return not kept

    assert not worse_than_stock([*usual, 0.05], [*(2 * one for one in usual), 0.03])
    # It is the same odd sample, and ours is a little worse on the others, too.
    assert worse_than_stock([*(1.05 * one for one in usual), 0.05], [*usual, 0.03])


def test_latency_is_relative_to_the_runtimes_own_float_file() -> None:
    both = [entry("float", "executorch", ms=4.0), entry("float", "tflite", ms=2.0)]
    ours = [entry("ours", "executorch", ms=2.4), entry("ours", "tflite", ms=1.5)]
    limits = Bars(latency={"executorch": 0.66, "tflite": 0.56}, executorch_of_tflite=1.3)
    assert held(limits, *both, *ours) == {
        "tiny executorch: latency of float": True,
        "tiny tflite: latency of float": False,
        "tiny: ExecuTorch's latency of TFLite's": False,
    }


def test_a_slow_float_file_of_ours_does_not_flatter_int8() -> None:
    files = [entry("float", ms=4.0), entry("stock_float", ms=2.0), entry("ours", ms=1.5)]
    found = held(Bars(latency={"tflite": 0.56}), *files)
    assert found == {"tiny tflite: latency of float": False}


@pytest.mark.parametrize(
    ("chosen", "rule", "kept"),
    [
        ("fp32", "No INT8 artifact is faster.", True),
        ("int8", "No INT8 artifact is faster.", False),
        ("fp32", "It is the fastest.", False),
    ],
)
def test_where_int8_is_slower_the_selector_has_to_take_float_and_say_why(
    chosen: str, rule: str, kept: bool
) -> None:
    found = held(
        Bars(float_where_slower=True),
        entry("float", ms=1.0),
        entry("ours", ms=1.5),
        choices=(Choice("tflite", "x", chosen, rule),),
    )
    assert found == {"tiny tflite: slower than float, and not told so": kept}


def test_a_part_may_lose_little_against_the_model_that_gives_only_it() -> None:
    alone = tuple(
        Alone(part, "ours-tflite", together, by_itself)
        for part, together, by_itself in (("boxes", 30.0, 30.9), ("scores", 0.1, 30.0))
    )
    names = ("boxes", "scores", "masks", "whole only")
    parts = tuple(Part(name, 0, 1, "" if "only" in name else name) for name in names)
    case = replace(TINY, bars=Bars(apart_db=1.0), parts=parts)
    entries = (entry("float"), entry("ours"))
    record = Record("tiny", "key", entries=entries, compared=("ours-tflite",), alone=alone)
    assert {bar.what: bar.kept for bar in bars(case, record, seed=0)} == {
        "tiny tflite: boxes alone, better by": True,
        "tiny tflite: scores alone, better by": False,
        "tiny tflite: masks alone could not be made": False,
    }


def test_a_missed_bar_is_exit_code_1_but_for_times_in_a_quick_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = replace(TINY, bars=Bars(latency={"tiny": 1.0, "tflite": 0.5}))
    files = (entry("float"), entry("ours", db=12.3))
    record = Record("tiny", "key", entries=files, compared=("ours-tflite",))
    found = report([case], {"tiny": record}, {}, 0)
    assert finish(found, as_json=False, quick=False) == 1
    assert finish(found, as_json=False, quick=True) == 0
    text = capsys.readouterr().out
    assert "MISSED: tiny tflite: latency of float: 1 > 0.5" in text
    assert "12.3" in text
    case = replace(TINY, bars=Bars(sqnr_db=20.0))
    assert finish(report([case], {"tiny": record}, {}, 0), as_json=False, quick=True) == 1


def test_a_bar_may_be_a_least_value() -> None:
    assert Bar("x", 25.0, 22.0, least=True).kept
    assert str(Bar("x", 21.0, 22.0, "dB", least=True)) == "MISSED: x: 21 dB < 22 dB"


def test_rounds_meet_every_file_once_and_neither_side_first_always() -> None:
    files = [Timed(name, "onnx", Path(name), ()) for name in "abcdef"]
    orders = ["".join(file.key for file in rotated(files, i, 4)) for i in range(4)]
    assert all(sorted(order) == list("abcdef") for order in orders)
    assert {order[0] for order in orders} == {"a", "d"} | {orders[1][0], orders[3][0]}
    assert len({order.index("a") < order.index("b") for order in orders}) == 2


def test_timing_is_pinned_to_one_core_and_let_go() -> None:
    before = os.sched_getaffinity(0)
    with pinned() as core:
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before


def test_the_sets_of_a_case_are_disjoint_and_of_the_size_that_it_says(tmp_path: Path) -> None:
    write_sets(TINY, tmp_path)
    rows = []
    for role, count in zip(("calib", "choose", "report"), TINY.counts, strict=True):
        (stack,), labels = judging.read_set(tmp_path / f"{role}.npz")
        assert stack.shape == (count, 1, 3, 32, 32) and labels is None
        rows += [row.tobytes() for row in stack]
    assert len(set(rows)) == sum(TINY.counts)


def test_an_integer_file_is_fed_integers() -> None:
    spec = TensorSpec("args_0", (1, 2), "int8", scale=0.5, zero_point=-10)
    (given,) = judging.fed([spec], [np.array([[1.0, 1000.0]], np.float32)])
    assert given.dtype == np.int8 and given.tolist() == [[-8, 127]]
    floats = np.ones((1, 2), np.float32)
    assert judging.fed((), [floats])[0] is floats


def test_parts_of_an_output_are_judged_one_by_one() -> None:
    boxes, scores = np.full((2, 1, 4, 3), 100.0), np.full((2, 1, 6, 3), 0.01)
    wanted = np.concatenate([boxes, scores], axis=2).astype(np.float32)
    given = np.concatenate([boxes * 1.01, scores * 0], axis=2).astype(np.float32)
    case = replace(TINY, parts=(Part("boxes", 0, 4), Part("scores", 4, None)))
    truth = Truth([], None, (), [wanted])
    found = judging.compare(case, ["output"], truth, [given])
    sqnr = [(one.output, round(one.sqnr_db)) for one in found.outputs]
    assert sqnr == [("boxes", 40), ("scores", 0)]
    assert found.noise == (0.5, 0.5)


def test_the_noise_of_all_samples_is_what_the_sqnr_says() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(6, 1, 5)).astype(np.float32)
    given = wanted + rng.normal(size=wanted.shape).astype(np.float32) * 0.01
    found = judging.compare(TINY, ["output"], Truth([], None, (), [wanted]), [given])
    assert len(found.noise) == 6
    assert -10 * math.log10(sum(found.noise)) == pytest.approx(found.outputs[0].sqnr_db)
    given[2, 0, 3] = np.nan
    found = judging.compare(TINY, ["output"], Truth([], None, (), [wanted]), [given])
    assert max(found.noise) == found.noise[2] and math.isfinite(found.noise[2])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_complete(case: Case) -> None:
    assert case.sets in SETS
    calib, choose, told = case.counts
    assert min(calib, told) > 0
    # A drop of the budget must be more than one sample.
    assert choose >= 1 / case.max_drop
    text = case.file.read_text(encoding="utf-8")
    for factory in (case.factory, *(part.alone for part in case.parts if part.alone)):
        assert re.search(rf"^(def )?(\w+, )?{factory}\b", text, re.MULTILINE)


def test_an_unknown_model_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--models", "resnet19"])
    assert caught.value.code == 2
    assert "resnet19" in capsys.readouterr().err
