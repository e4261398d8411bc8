"""Probing this machine as a device: real artifacts, real runners, real crashes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgekit import codec
from edgekit.bundle import Bundle
from edgekit.errors import LinkLost, UsageError
from edgekit.targets import job as jobs
from edgekit.targets import probe as probing
from edgekit.targets import runtimes
from edgekit.targets.abi import Abi
from edgekit.targets.base import Completed
from edgekit.targets.device import Device, connect
from edgekit.targets.local import LocalTransport
from edgekit.types import ProbeRequest, ProbeResult
from tests.targets.conftest import N, local_target


def request_for(bundle: Bundle, runtime: str, threads: int = 1, processes: int = 2) -> ProbeRequest:
    (artifact,) = (a for a in bundle.manifest.artifacts if a.runtime == runtime)
    return ProbeRequest(artifact.id, artifact.sha256, threads, processes, 0.05)


def test_the_schedule_interleaves_in_seeded_order() -> None:
    requests = [ProbeRequest(f"a{i}", "0" * 64, 1, 3, 1.0) for i in range(4)]
    requests[3] = dataclasses.replace(requests[3], processes=1)
    steps = probing.schedule(requests, seed=7)
    assert [s.candidate for s in steps[:4]] == [0, 1, 2, 3]
    assert all(s.round is None for s in steps[:4])
    rounds = [list(group) for _, group in itertools.groupby(steps[4:], key=lambda s: s.round)]
    assert [Counter(s.candidate for s in group) for group in rounds] == [
        Counter([0, 1, 2, 3]), Counter([0, 1, 2]), Counter([0, 1, 2]),
    ]  # fmt: skip
    assert steps == probing.schedule(requests, seed=7)
    orders = {
        tuple(s.candidate for s in probing.schedule(requests, seed)[4:8]) for seed in range(300)
    }
    assert len(orders) == 24, "every order of four is drawn sooner or later"


def test_all_four_runtimes_are_measured_and_checked(device: Device, bundle: Bundle) -> None:
    requests = [
        request_for(bundle, "executorch", 1),
        request_for(bundle, "executorch", 2),
        request_for(bundle, "tflite"),
        request_for(bundle, "onnx"),
        request_for(bundle, "torchscript"),
    ]
    seen: list[ProbeResult] = []
    results = device.probe(bundle, requests, seed=3, on_result=seen.append)
    assert [r.request for r in results] == requests
    assert sorted(map(repr, seen)) == sorted(map(repr, results)), "one call per result"
    for result in results:
        assert result.status == "ok" and result.error is None, result.error
        assert len(result.latency_ns) == len(result.load_ns) == len(result.first_ns) == 2
        assert all(len(process) >= 10 for process in result.latency_ns)
        assert len(result.golden) == 12 and result.golden_n == N
        assert min(check.sqnr_db_float for check in result.golden) > 80
        assert min(check.sqnr_db_host for check in result.golden) > 100
        assert result.drop == 0.0 and result.top1_agreement == 1.0
        assert result.facts_before.arch == os.uname().machine
        assert result.runtime_version and result.started_utc.endswith("Z")
        assert codec.from_json(ProbeResult, codec.to_json(result), where="x") == result
    assert not list((Path(device.channel.root) / "spool").iterdir()), "fetched results are gone"


def test_nothing_is_sent_twice(device: Device, bundle: Bundle) -> None:
    ids = [a.id for a in bundle.manifest.artifacts if a.runtime in ("onnx", "tflite")]
    first = device.push(bundle, ids)
    # Two artifacts, two golden inputs, two runners and their shared core.
    assert (first.sent_blobs, first.present_blobs) == (7, 0) and first.sent_bytes > 0
    again = device.push(bundle, ids)
    assert (again.sent_bytes, again.sent_blobs, again.present_blobs) == (0, 0, 7)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Replaces the runner of a Python runtime by some code."""
    original = runtimes.resolve
    codes: dict[str, str] = {}

    def resolve(runtime: str, abi: Abi, **options: Any) -> runtimes.Runtime:
        resolved = original(runtime, abi, **options)
        if runtime in codes:
            argv = ("{python}", "-I", "-S", "-c", codes[runtime])
            resolved = dataclasses.replace(resolved, argv=argv)
        return resolved

    monkeypatch.setattr(runtimes, "resolve", resolve)
    return codes.__setitem__


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        ("import os,sys; print('last words', file=sys.stderr); os.kill(os.getpid(), 11)",
         "signal", "crashed with SIGSEGV"),
        ("import os; os.kill(os.getpid(), 4)", "signal", "does not have (SIGILL)"),
        ("import time; time.sleep(600)", "timeout", "time limit"),
        ("raise MemoryError", "memory", "ran out of memory"),
        ("print('{}')", "exit", "report cannot be used"),
        ("import os\nwhile True: os.write(1, b'x' * 65536)", "exit", "wrote more than"),
        ("raise SystemExit(65)", "model", "exit code 65"),
    ],
)  # fmt: skip
def test_one_crash_is_one_failed_candidate(
    code: str,
    kind: str,
    text: str,
    bundle: Bundle,
    broken: Callable[[str, str], None],
    tmp_path: Path,
) -> None:
    broken("onnx", code)
    requests = [request_for(bundle, "onnx"), request_for(bundle, "tflite")]
    with connect(local_target(tmp_path / "root", timeout_s="3")) as device:
        failed, fine = device.probe(bundle, requests)
    assert failed.status == "failed" and failed.error is not None
    assert failed.error.candidate == "tiny-onnx-fp32" and failed.error.stage == "probe"
    assert failed.error.kind == kind and text in failed.error.message
    if "last words" in code:
        assert failed.error.log_tail == ("last words",)
    assert failed.latency_ns == () and failed.golden == () and failed.drop is None
    assert fine.status == "ok" and len(fine.latency_ns) == 2


def test_a_crash_in_a_later_process_keeps_what_was_measured(
    bundle: Bundle, broken: Callable[[str, str], None], device: Device, tmp_path: Path
) -> None:
    """Two good processes, then a crash: the samples stay, the verdict is failed."""
    counter = tmp_path / "count"
    broken(
        "onnx",
        "import os, sys\n"
        f"n = os.path.getsize({str(counter)!r}) if os.path.exists({str(counter)!r}) else 0\n"
        f"open({str(counter)!r}, 'a').write('x')\n"
        "if n == 2: os.kill(os.getpid(), 11)\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, '-B', "
        f"{str(runtimes.AGENT_DIR / 'run_onnx.py')!r}, *sys.argv[1:]])",
    )
    (result,) = device.probe(bundle, [request_for(bundle, "onnx", processes=4)])
    assert result.status == "failed" and len(result.latency_ns) == 1
    assert counter.read_text() == "xxx", "nothing is run after the crash"


def test_outputs_that_are_wrong_are_seen(
    bundle: Bundle, broken: Callable[[str, str], None], device: Device
) -> None:
    """A runner that runs well and computes something else: measured, and judged by its outputs."""
    script = str(runtimes.AGENT_DIR)
    broken(
        "onnx",
        f"import sys; sys.path[:0] = [{script!r}]; import site; site.main()\n"
        "import runner_core, run_onnx\n"
        "class Wrong(run_onnx.OnnxBackend):\n"
        "    def outputs(self): return [(n, a * 1.5) for n, a in super().outputs()]\n"
        "run_onnx.OnnxBackend = Wrong\n"
        "sys.exit(runner_core.main(run_onnx.OnnxRunner()))",
    )
    (result,) = device.probe(bundle, [request_for(bundle, "onnx")])
    assert result.status == "ok", result.error
    assert all(5.5 < check.sqnr_db_float < 6.5 for check in result.golden)


def test_a_runtime_that_cannot_be_had_fails_its_candidates_only(
    bundle: Bundle, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    requests = [request_for(bundle, "executorch"), request_for(bundle, "tflite")]
    report = device.push(bundle, [request.artifact_id for request in requests])
    # One artifact, two golden inputs, a runner and its core.
    assert report.sent_blobs == 5
    failed, fine = device.probe(bundle, requests)
    assert fine.status == "ok" and failed.status == "failed" and failed.error is not None
    assert failed.error.kind == "runtime" and failed.error.remedy == "apt-get install g++"
    (only,) = device.probe(bundle, requests[:1])
    assert only.status == "failed" and only.facts_before.arch == os.uname().machine


def test_another_version_of_a_file_is_refused(device: Device, bundle: Bundle) -> None:
    request = dataclasses.replace(request_for(bundle, "onnx"), artifact_sha256="0" * 64)
    with pytest.raises(UsageError, match="another version"):
        device.probe(bundle, [request])


class _Flaky(LocalTransport):
    """Loses the connection in the middle of the answer, some times."""

    lost = 0

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        request = json.loads(stdin) if stdin.startswith(b'{"schema"') else {}
        if request.get("op") != "follow" or self.lost <= 0 or on_line is None:
            return super().run(argv, stdin=stdin, timeout_s=timeout_s, on_line=on_line)
        self.lost -= 1

        def once(line: str) -> None:
            assert on_line is not None
            on_line(line)
            raise LinkLost("the cable was pulled.")

        return super().run(argv, stdin=stdin, timeout_s=timeout_s, on_line=once)


def _flaky(device: Device, times: int) -> None:
    transport = _Flaky()
    transport.lost = times
    device.channel = dataclasses.replace(device.channel, transport=transport)


def test_a_lost_link_costs_no_measurement(device: Device, bundle: Bundle) -> None:
    _flaky(device, 2)
    (result,) = device.probe(bundle, [request_for(bundle, "tflite", processes=3)])
    assert result.status == "ok" and len(result.latency_ns) == 3


def test_a_link_that_stays_lost_leaves_a_job_that_the_next_call_adopts(
    device: Device, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(jobs, "LINK_RETRIES", 0)
    requests = [request_for(bundle, "tflite", processes=3)]
    _flaky(device, 1)
    with pytest.raises(LinkLost, match="goes on") as caught:
        device.probe(bundle, requests, seed=1)
    assert "same command" in caught.value.remedy
    (job,) = (Path(device.channel.root) / "spool").iterdir()
    request = (job / "request.json").stat().st_ino
    with connect(local_target(tmp_path / "root")) as again:
        started: list[int] = []
        call = type(again.channel).call

        def spy(self: Any, op: str, **fields: Any) -> dict[str, Any]:
            if op == "forget":
                started.append((job / "request.json").stat().st_ino)
            return call(self, op, **fields)

        monkeypatch.setattr(type(again.channel), "call", spy)
        (result,) = again.probe(bundle, requests, seed=1)
    assert result.status == "ok" and len(result.latency_ns) == 3
    assert started == [request], "the first job's results were fetched, no new job was made"


def test_a_killed_worker_is_a_lost_measurement_not_a_hang(device: Device, bundle: Bundle) -> None:
    spool = Path(device.channel.root) / "spool"

    def kill() -> None:
        while not list(spool.glob("*/events.jsonl")):
            time.sleep(0.01)
        (worker,) = spool.glob("*/worker.json")
        os.kill(json.loads(worker.read_text())["pid"], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    request = dataclasses.replace(request_for(bundle, "torchscript", processes=5), budget_s=2.0)
    (result,) = device.probe(bundle, [request])
    killer.join()
    assert result.status == "failed" and result.error is not None
    assert result.error.kind == "lost"
    # The kernel kills it at once; how soon it is gone from the list is another matter.
    deadline = time.monotonic() + 10
    while _runners(device) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runners(device), "the runner dies with its worker"


def _runners(device: Device) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        if device.channel.root in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(line)
    return found


def test_ctrl_c_stops_worker_and_runner(device: Device, bundle: Bundle) -> None:
    spool = Path(device.channel.root) / "spool"

    def interrupt() -> None:
        while not list(spool.glob("*/events.jsonl")):
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    request = dataclasses.replace(request_for(bundle, "onnx", processes=5), budget_s=5.0)
    with pytest.raises(KeyboardInterrupt):
        device.probe(bundle, [request])
    interrupter.join()
    assert not _runners(device)
    assert not list(spool.iterdir())
    device.gc()  # the lock is free
