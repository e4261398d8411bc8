"""LocalTransport keeps the transport contract: streams, limits, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from edgekit.errors import DeviceError, LinkLost
from edgekit.targets import base
from edgekit.targets.local import LocalTransport


@pytest.fixture
def transport() -> base.Transport:
    return LocalTransport()


def _python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def test_a_command_gets_stdin_and_gives_code_and_both_streams(transport: base.Transport) -> None:
    code = (
        "import sys; d=sys.stdin.read(); print(len(d)); sys.stderr.write('e'*300000); sys.exit(3)"
    )
    done = transport.run(_python(code), stdin=b"x" * 500_000, timeout_s=20)
    assert (done.returncode, done.stdout, len(done.stderr)) == (3, b"500000\n", 300_000)


def test_arguments_are_not_interpreted(transport: base.Transport) -> None:
    done = transport.run(["echo", "$HOME; *", "a b"], timeout_s=20)
    assert done.stdout == b"$HOME; * a b\n"


def test_lines_arrive_while_the_command_runs(transport: base.Transport) -> None:
    seen: list[tuple[str, float]] = []
    code = (
        "import time\n"
        "for i in range(3): print(i, flush=True); time.sleep(0.3)\n"
        "print('end', end='')"
    )
    done = transport.run(
        _python(code), timeout_s=20, on_line=lambda line: seen.append((line, time.monotonic()))
    )
    assert [line for line, _ in seen] == ["0", "1", "2", "end"] and done.stdout == b""
    assert seen[2][1] - seen[0][1] > 0.4


def test_a_signal_is_a_negative_code(transport: base.Transport) -> None:
    done = transport.run(_python("import os; os.kill(os.getpid(), 11)"), timeout_s=20)
    assert done.returncode == -signal.SIGSEGV


def test_a_command_that_ignores_its_stdin_is_no_error(transport: base.Transport) -> None:
    assert transport.run(["true"], stdin=b"x" * 10_000_000, timeout_s=20).returncode == 0


def test_a_missing_program_is_a_device_error(transport: base.Transport) -> None:
    with pytest.raises(DeviceError, match="no-such-program"):
        transport.run(["no-such-program-here"], timeout_s=5)


def test_output_is_bounded(transport: base.Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.targets.local.MAX_OUTPUT_BYTES", 100_000)
    with pytest.raises(DeviceError, match="more than 100000 bytes"):
        transport.run(["yes"], timeout_s=20)


def _wait_gone(pid: int) -> bool:
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_timeout_kills_the_whole_group(transport: base.Transport, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"sleep 300 & echo $! > {note}; wait"
    started = time.monotonic()
    with pytest.raises(LinkLost, match="time limit"):
        transport.run(["sh", "-c", script], timeout_s=0.5)
    assert time.monotonic() - started < 5
    assert _wait_gone(int(note.read_text()))


def test_ctrl_c_kills_the_whole_group(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"sleep 300 & echo $! > {note}; wait"
    code = (
        "from edgekit.targets.local import LocalTransport\n"
        f"try: LocalTransport().run(['sh', '-c', {script!r}], timeout_s=300)\n"
        "except KeyboardInterrupt: raise SystemExit(130)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    try:
        while not (note.exists() and note.read_text().strip()):
            assert process.poll() is None
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(10) == 130
    finally:
        process.kill()
    assert _wait_gone(int(note.read_text()))


def test_an_orphan_that_holds_the_pipe_does_not_hang_the_caller(
    transport: base.Transport,
) -> None:
    started = time.monotonic()
    done = transport.run(["sh", "-c", "setsid sleep 3 & echo hi"], timeout_s=30)
    assert done.stdout == b"hi\n" and time.monotonic() - started < 2.5


def test_files_go_there_and_back(transport: base.Transport, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(data)
    sent: list[int] = []
    transport.put(tmp_path / "a", str(tmp_path / "b"), sent.append)
    transport.get(str(tmp_path / "b"), tmp_path / "c", len(data))
    assert (tmp_path / "c").read_bytes() == data and sum(sent) == len(data)


def test_get_refuses_what_is_too_large_or_not_a_file(
    transport: base.Transport, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"x" * 11)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(DeviceError, match="more than the 10 bytes"):
        transport.get(str(tmp_path / "a"), tmp_path / "b", 10)
    with pytest.raises(DeviceError, match="regular file"):
        transport.get(str(tmp_path / "fifo"), tmp_path / "b", 10)
    with pytest.raises(DeviceError, match="could not be fetched"):
        transport.get(str(tmp_path / "nothing"), tmp_path / "b", 10)
    with pytest.raises(DeviceError, match="could not be copied"):
        transport.put(tmp_path / "a", str(tmp_path / "no" / "b"))
