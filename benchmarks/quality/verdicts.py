"""The bars of a case, held against its record."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.stats

from benchmarks.common import Bar
from benchmarks.quality.cases import Case
from benchmarks.quality.records import Entry, Record
from edgekit import stats

#: Nobody acts on less.
SQNR_NOISE_DB = 0.1
#: Latencies of two builds of one program differ by as much.
LATENCY_NOISE = 0.03


def bars(case: Case, record: Record, seed: int) -> list[Bar]:
    """Every bar of a case, on latency only if it was timed; one that failed, or that lacks what it
    needs, has one, which is missed."""
    if record.skipped or record.failure:
        return [Bar(f"{case.name}: it could be made", 1, 0, timing=False)]
    found = list(_made(case, record))
    for runtime in record.runtimes:
        ours = record.entry("ours", runtime)
        if ours is not None:
            found += _accuracy(case, record, ours)
            found += _against_stock(case, record, ours, seed)
            found += _against_float(case, record, ours, seed)
    found += _between_runtimes(case, record)
    return [*found, *_parts(case, record)]


def ratio(one: Entry, other: Entry) -> float:
    """Median latency of one / of the other."""
    return one.median_ns / other.median_ns


def _made(case: Case, record: Record) -> Iterator[Bar]:
    for runtime in record.runtimes:
        for side in ("float", "ours"):
            entries = [e for e in record.entries if (e.side, e.runtime) == (side, runtime)]
            failed = not any(not entry.failure for entry in entries)
            untimed = any(entry.untimed for entry in entries)
            if failed or untimed:
                name = "float" if side == "float" else "INT8"
                yield Bar(f"{case.name} {runtime}: {name} files missing", 1, 0, timing=False)


def _parts(case: Case, record: Record) -> Iterator[Bar]:
    if case.bars.apart_db is None:
        return
    runtimes = {entry.artifact: entry.runtime for entry in record.entries}
    known = {(alone.part, alone.artifact): alone for alone in record.alone}
    for artifact in record.compared:
        for part in case.parts:
            what, alone = (
                f"{case.name} {runtimes[artifact]}: {part.name}",
                known.get((part.name, artifact)),
            )
            if alone is not None:
                better = alone.alone_db - alone.whole_db
                yield Bar(
                    f"{what} alone, better by", better, case.bars.apart_db, "dB", timing=False
                )
            elif part.alone:
                yield Bar(f"{what} alone could not be made", 1, 0, timing=False)


def _accuracy(case: Case, record: Record, ours: Entry) -> Iterator[Bar]:
    held, what = case.bars, f"{case.name} {ours.runtime}"
    if held.sqnr_db is not None and ours.sqnr_db is not None:
        yield Bar(f"{what}: SQNR", ours.sqnr_db, held.sqnr_db, "dB", timing=False, least=True)
    if held.agreement is not None and ours.agreement is not None:
        yield Bar(
            f"{what}: top-1 agreement", ours.agreement, held.agreement, timing=False, least=True
        )
    if held.loss is not None and ours.accuracy is not None and record.float_accuracy is not None:
        loss = 100 * (record.float_accuracy - ours.accuracy)
        yield Bar(f"{what}: loss of top-1", loss, 100 * held.loss, "points", timing=False)
    twin = record.entry("float", ours.runtime)
    if held.size is not None and twin is not None:
        share = ours.size_bytes / twin.size_bytes
        yield Bar(f"{what}: size of float", share, held.size, timing=False)


def _against_stock(case: Case, record: Record, ours: Entry, seed: int) -> Iterator[Bar]:
    stock, what = record.entry("stock", ours.runtime), f"{case.name} {ours.runtime}"
    if stock is None:
        return
    if case.bars.stock_sqnr and stock.sqnr_db is not None and ours.sqnr_db is not None:
        gained = ours.sqnr_db - stock.sqnr_db
        yield Bar(
            f"{what}: SQNR above stock {gained:+.2f} dB, on other samples at most",
            most_gained_db(ours, stock, seed),
            -SQNR_NOISE_DB,
            "dB",
            timing=False,
            least=True,
        )
    if case.bars.stock_latency and ours.latency_ns and stock.latency_ns:
        found = compare(ours, stock, seed)
        yield Bar(
            f"{what}: latency of stock {found.ratio.value:.2f}, surely above",
            found.ratio.low,
            1 + LATENCY_NOISE,
        )


def _against_float(case: Case, record: Record, ours: Entry, seed: int) -> Iterator[Bar]:
    twin, what = record.fastest_float(ours.runtime), f"{case.name} {ours.runtime}"
    if twin is None or not ours.latency_ns:
        return
    limit = case.bars.latency.get(ours.runtime)
    if limit is not None:
        yield Bar(f"{what}: latency of float", ratio(ours, twin), limit)
    if case.bars.float_where_slower and compare(ours, twin, seed).verdict == "slower":
        chosen = [choice for choice in record.choices if choice.runtime == ours.runtime]
        told = any(one.precision == "fp32" and "INT8" in one.rule for one in chosen)
        yield Bar(f"{what}: slower than float, and not told so", int(not told), 0)


def _between_runtimes(case: Case, record: Record) -> Iterator[Bar]:
    limit = case.bars.executorch_of_tflite
    one, other = record.entry("ours", "executorch"), record.entry("ours", "tflite")
    if limit is None or one is None or other is None:
        return
    if one.latency_ns and other.latency_ns:
        yield Bar(f"{case.name}: ExecuTorch's latency of TFLite's", ratio(one, other), limit)


def most_gained_db(ours: Entry, stock: Entry, seed: int) -> float:
    """How much SQNR ours may have above stock on other samples like these: the upper end of the
    bootstrap's interval of 95 %. Samples are drawn in pairs, since both files ran on all of them;
    a few that lie far from all others, on which any file errs most, decide the SQNR of a set, and
    draws with and without them tell what is theirs.

    Args:
        ours, stock: with the ``noise`` of the same samples, two or more.
    """

    def gained(our: np.ndarray, their: np.ndarray, axis: int = -1) -> np.ndarray:
        tiny = 1e-30
        ratio: np.ndarray = (their.sum(axis=axis) + tiny) / (our.sum(axis=axis) + tiny)
        gains: np.ndarray = 10 * np.log10(ratio)
        return gains

    found = scipy.stats.bootstrap(
        (ours.noise, stock.noise), gained, paired=True, method="percentile", rng=seed
    )
    return float(found.confidence_interval.high)


def compare(one: Entry, other: Entry, seed: int) -> stats.Comparison:
    """Of the rounds in which both ran; unpaired where there is only one."""
    a, b = one.latency_ns, other.latency_ns
    paired = len(a) == len(b) > 1
    return stats.compare(a, b, 0.5, noise_floor=LATENCY_NOISE, paired=paired, seed=seed)
