"""What the Python runners share: arguments, raw tensor files, the timed loop, one line of JSON.

Runs on the device, beside the runners: Python 3.9+, standard library and numpy only. The contract
(arguments, JSON, exit codes) is the one that executorch_runner.cpp keeps too:

    --model FILE --threads N --samples N [--input RAW]... [--spec DTYPE:AxBxC]... [--output RAW]...
    --warmup-s S --budget-s S --min-runs N --max-runs N        (or --selftest)

Every ``--input`` holds samples back to back, raw little-endian and C-contiguous, in the order of
the model's inputs, of which the first ``samples`` are run; every ``--output`` receives their
outputs likewise (none: outputs are dropped). Single inferences are timed on the first sample.
``--samples 0`` feeds zeros. ``--spec`` states what the caller feeds; a runner refuses a model that
wants something else, and TorchScript, whose files do not say, needs it.
"""

# ruff: noqa: B905  (zip's strict= came with Python 3.10)

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import traceback
from typing import Any, BinaryIO, Callable, Dict, List, NoReturn, Optional, Sequence, Tuple

RUNNER_VERSION = "1"
OK, USAGE, MODEL, INPUT, RUNTIME, EXECUTION = 0, 64, 65, 66, 69, 70
MAX_RUNS = 100_000  # bounds the JSON line to about one megabyte
WINDOW = 8  # runs per window of the steadiness test
STEADY = 0.02  # two windows whose medians differ by less than this are steady
RAMP_S = 0.2  # a CPU governor needs this long to raise the clock
#: In the environment, where somebody counts the instructions between two runs: a system call that
#: no runtime makes then tells them apart.
MARK = "EDGEKIT_MARK_RUNS"


class Failure(Exception):
    """Ends the runner with ``code`` and the message on stderr."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Tensor:
    """One input or output: name, numpy dtype name and shape with the batch dimension."""

    def __init__(self, name: str, dtype: str, shape: Sequence[int]) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = tuple(int(size) for size in shape)

    @property
    def nbytes(self) -> int:
        import numpy as np

        return math.prod(self.shape) * int(np.dtype(self.dtype).itemsize)

    def to_json(self) -> Dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


class Backend:
    """A loaded model. ``bind`` takes one sample, ``invoke`` runs it once and is what gets timed."""

    inputs: List[Tensor]

    def bind(self, arrays: Sequence[Any]) -> None:
        raise NotImplementedError

    def invoke(self) -> None:
        raise NotImplementedError

    def outputs(self) -> List[Tuple[str, Any]]:
        """Names and numpy arrays of the last ``invoke``."""
        raise NotImplementedError


class Runner:
    """What a runner file provides: how to import, self-test and load."""

    name = ""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the runner's own options; most have none."""

    def version(self) -> str:
        """Imports the runtime and returns its version."""
        raise NotImplementedError

    def selftest(self) -> None:
        """Executes something small, so that instructions the CPU lacks show here."""
        raise NotImplementedError

    def load(self, args: argparse.Namespace, specs: List[Tensor]) -> Backend:
        raise NotImplementedError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Failure(USAGE, message)


def _arguments(runner: Runner, argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = _Parser(prog="run_" + runner.name, allow_abbrev=False)
    parser.add_argument("--selftest", action="store_true")
    parser.add_argument("--model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--input", action="append", default=[])
    parser.add_argument("--spec", action="append", default=[])
    parser.add_argument("--output", action="append", default=[])
    parser.add_argument("--warmup-s", type=float, default=0.0)
    parser.add_argument("--budget-s", type=float, default=0.0)
    parser.add_argument("--min-runs", type=int, default=10)
    parser.add_argument("--max-runs", type=int, default=10_000)
    runner.add_arguments(parser)
    args = parser.parse_args(argv)
    if args.selftest:
        return args
    if not args.model:
        raise Failure(USAGE, "--model is required")
    if args.threads < 1 or args.samples < 0:
        raise Failure(USAGE, "--threads must be at least 1 and --samples at least 0")
    if not 1 <= args.min_runs <= args.max_runs <= MAX_RUNS:
        raise Failure(USAGE, "needs 1 <= --min-runs <= --max-runs <= %d" % MAX_RUNS)
    if not (0 <= args.warmup_s < math.inf and 0 <= args.budget_s < math.inf):
        raise Failure(USAGE, "--warmup-s and --budget-s must be finite and not negative")
    return args


def _parse_spec(text: str, index: int) -> Tensor:
    dtype, _, shape = text.partition(":")
    try:
        tensor = Tensor("input_%d" % index, dtype, [int(s) for s in shape.split("x") if s])
        if tensor.nbytes < 0:
            raise ValueError("negative size")
    except (TypeError, ValueError) as error:
        raise Failure(USAGE, "--spec %r is not DTYPE:AxBxC: %s" % (text, error)) from None
    return tensor


def _check_specs(specs: List[Tensor], wanted: List[Tensor]) -> None:
    have = [(t.dtype, t.shape) for t in specs]
    want = [(t.dtype, t.shape) for t in wanted]
    if specs and have != want:
        raise Failure(INPUT, "the caller feeds %s, the model wants %s" % (have, want))


def _open_inputs(paths: List[str], samples: int, wanted: List[Tensor]) -> List[BinaryIO]:
    if samples and len(paths) != len(wanted):
        raise Failure(INPUT, "%d input files for %d inputs" % (len(paths), len(wanted)))
    files: List[BinaryIO] = []
    for path, tensor in zip(paths, wanted):
        try:
            size = os.stat(path).st_size
            files.append(open(path, "rb"))  # noqa: SIM115  (open until the process ends)
        except OSError as error:
            raise Failure(INPUT, "cannot read input %s: %s" % (path, error)) from None
        if size < samples * tensor.nbytes or size % tensor.nbytes:
            raise Failure(
                INPUT,
                "%s has %d bytes; that is not %d or more samples of %d bytes"
                % (path, size, samples, tensor.nbytes),
            )
    return files


def _sample(files: List[BinaryIO], wanted: List[Tensor]) -> List[Any]:
    import numpy as np

    arrays = []
    for file, tensor in zip(files, wanted):
        data = bytearray(tensor.nbytes)
        if file.readinto(data) != len(data):  # type: ignore[attr-defined]
            raise Failure(INPUT, "%s became shorter while it was read" % file.name)
        arrays.append(np.frombuffer(data, dtype=tensor.dtype).reshape(tensor.shape))
    return arrays


def _zeros(wanted: List[Tensor]) -> List[Any]:
    import numpy as np

    return [np.zeros(tensor.shape, tensor.dtype) for tensor in wanted]


def _timed(invoke: Callable[[], None]) -> int:
    start = time.perf_counter_ns()
    invoke()
    return time.perf_counter_ns() - start


def _median(values: Sequence[int]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[~middle]) / 2


def warm_up(invoke: Callable[[], None], seconds: float) -> int:
    """Runs until two successive windows agree, at most ``seconds``; returns the number of runs."""
    start = time.perf_counter()
    times: List[int] = []
    while True:
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            break
        if len(times) >= 2 * WINDOW and elapsed >= min(RAMP_S, seconds):
            before, last = _median(times[-2 * WINDOW : -WINDOW]), _median(times[-WINDOW:])
            if abs(last - before) <= STEADY * before:
                break
        times.append(_timed(invoke))
    return len(times)


def measure(invoke: Callable[[], None], budget_s: float, min_runs: int, max_runs: int) -> List[int]:
    """Nanoseconds of single runs: at least ``min_runs``, until ``budget_s`` or ``max_runs``."""
    times: List[int] = []
    marked = MARK in os.environ
    end = time.perf_counter() + budget_s
    while len(times) < max_runs and (len(times) < min_runs or time.perf_counter() < end):
        if marked:
            os.getpriority(os.PRIO_PROCESS, 0)
        times.append(_timed(invoke))
    if marked:
        os.getpriority(os.PRIO_PROCESS, 0)
    return times


def peak_rss_bytes() -> int:
    """VmHWM, which starts at zero with the program; ru_maxrss would include the parent's peak."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _replay(
    backend: Backend, files: List[BinaryIO], samples: int, paths: List[str]
) -> Tuple[int, List[Tensor]]:
    """Runs every sample once, writing the outputs; returns the first run's ns and the outputs."""
    import numpy as np

    first_ns, outputs = 0, []  # type: int, List[Tensor]
    sinks: List[BinaryIO] = []
    try:
        for index in range(max(samples, 1)):
            backend.bind(_sample(files, backend.inputs) if samples else _zeros(backend.inputs))
            elapsed = _timed(backend.invoke)
            results = backend.outputs()
            if index == 0:
                first_ns = elapsed
                outputs = [Tensor(name, a.dtype.name, a.shape) for name, a in results]
                if paths and len(paths) != len(outputs):
                    raise Failure(
                        USAGE, "%d output files for %d outputs" % (len(paths), len(outputs))
                    )
                sinks = [open(path, "wb") for path in paths]  # noqa: SIM115  (closed below)
            if samples:
                for sink, (_, array) in zip(sinks, results):
                    sink.write(np.ascontiguousarray(array).tobytes())
    finally:
        for sink in sinks:
            sink.close()
    return first_ns, outputs


def _run(runner: Runner, args: argparse.Namespace, runtime_version: str) -> Dict[str, Any]:
    specs = [_parse_spec(text, index) for index, text in enumerate(args.spec)]
    if not os.path.isfile(args.model):
        raise Failure(MODEL, "no such model file: %s" % args.model)
    start = time.perf_counter_ns()
    try:
        backend = runner.load(args, specs)
    except Failure:
        raise
    except Exception as error:  # whatever a vendor's loader raises, the model is what it rejects
        raise Failure(MODEL, "%s: %s" % (type(error).__name__, error)) from error
    load_ns = time.perf_counter_ns() - start
    _check_specs(specs, backend.inputs)
    files = _open_inputs(args.input if args.samples else [], args.samples, backend.inputs)
    first_ns, outputs = _replay(backend, files, args.samples, args.output)
    warmup_runs, latency_ns = 0, []  # type: int, List[int]
    if args.budget_s > 0:
        for file in files:
            file.seek(0)
        backend.bind(_sample(files, backend.inputs) if files else _zeros(backend.inputs))
        warmup_runs = warm_up(backend.invoke, args.warmup_s)
        latency_ns = measure(backend.invoke, args.budget_s, args.min_runs, args.max_runs)
    return {
        "schema": 1,
        "runner": runner.name,
        "runner_version": RUNNER_VERSION,
        "runtime_version": runtime_version,
        "threads": args.threads,
        "load_ns": load_ns,
        "first_ns": first_ns,
        "latency_ns": latency_ns,
        "warmup_runs": warmup_runs,
        "peak_rss_bytes": peak_rss_bytes(),
        "samples": args.samples,
        "inputs": [tensor.to_json() for tensor in backend.inputs],
        "outputs": [tensor.to_json() for tensor in outputs],
    }


def main(runner: Runner, argv: Optional[Sequence[str]] = None) -> int:
    """Runs the contract; returns the exit code. Only the JSON line reaches the caller's stdout."""
    report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # vendors print banners and warnings; they belong to the diagnostics
    try:
        args = _arguments(runner, argv)
        try:
            version = runner.version()
        except ImportError as error:
            raise Failure(RUNTIME, "cannot load the runtime: %s" % error) from error
        if args.selftest:
            runner.selftest()
            document: Dict[str, Any] = {
                "schema": 1,
                "runner": runner.name,
                "runner_version": RUNNER_VERSION,
                "runtime_version": version,
                "selftest": "ok",
            }
        else:
            document = _run(runner, args, version)
        report.write(json.dumps(document, allow_nan=False) + "\n")
        report.flush()
        return OK
    except Failure as failure:
        sys.stderr.write("run_%s: %s\n" % (runner.name, failure))
        return failure.code
    except Exception:
        traceback.print_exc()
        return EXECUTION
