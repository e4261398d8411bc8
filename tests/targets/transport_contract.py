"""What every transport keeps: streams, limits, and no process left behind."""

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
from edgekit.targets.base import Transport

ROOT = Path(__file__).parents[2]


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def wait_gone(pid: int) -> bool:
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


class TransportContract:
    """The tests of one transport to this machine.

    A subclass gives the fixtures ``transport`` and ``remake``, statements that make ``transport``
    in another process; ``module`` is where its limit on output is.
    """

    module: str

    def test_a_command_gets_stdin_and_gives_code_and_both_streams(
        self, transport: Transport
    ) -> None:
        code = (
            "import sys; d=sys.stdin.read(); print(len(d)); sys.stderr.write('e'*300000); "
            "sys.exit(3)"
        )
        done = transport.run(python(code), stdin=b"x" * 500_000, timeout_s=20)
        assert (done.returncode, done.stdout, len(done.stderr)) == (3, b"500000\n", 300_000)

    def test_much_goes_both_ways_at_once(self, transport: Transport) -> None:
        data = os.urandom(9_000_000)
        assert transport.run(["cat"], stdin=data, timeout_s=60).stdout == data

    @pytest.mark.parametrize(
        "text", ["$HOME; *", "a b", "'", '"', "\\", "`id`", "-n x", "", "é\n\t!", "a'b\"c"]
    )
    def test_arguments_are_not_interpreted(self, transport: Transport, text: str) -> None:
        code = "import sys; sys.stdout.buffer.write(sys.argv[1].encode())"
        done = transport.run([*python(code), text], timeout_s=20)
        assert done.stdout == text.encode()

    def test_lines_arrive_while_the_command_runs(self, transport: Transport) -> None:
        seen: list[tuple[str, float]] = []
        code = (
            "import time\n"
            "for i in range(3): print(i, flush=True); time.sleep(0.3)\n"
            "print('end', end='')"
        )
        done = transport.run(
            python(code), timeout_s=20, on_line=lambda line: seen.append((line, time.monotonic()))
        )
        assert [line for line, _ in seen] == ["0", "1", "2", "end"] and done.stdout == b""
        assert seen[2][1] - seen[0][1] > 0.4

    def test_what_a_callback_raises_is_not_touched(self, transport: Transport) -> None:
        def refuse(line: str) -> None:
            raise TimeoutError("mine")

        with pytest.raises(TimeoutError, match="mine"):
            transport.run(["echo", "x"], timeout_s=20, on_line=refuse)
        assert transport.run(["true"], timeout_s=20).returncode == 0

    def test_a_signal_is_a_negative_code(self, transport: Transport) -> None:
        done = transport.run(python("import os; os.kill(os.getpid(), 11)"), timeout_s=20)
        assert done.returncode == -signal.SIGSEGV

    def test_a_command_that_ignores_its_stdin_is_no_error(self, transport: Transport) -> None:
        assert transport.run(["true"], stdin=b"x" * 10_000_000, timeout_s=20).returncode == 0

    def test_a_missing_program_is_a_device_error(self, transport: Transport) -> None:
        with pytest.raises(DeviceError, match="no-such-program"):
            transport.run(["no-such-program-here"], timeout_s=5)

    def test_output_is_bounded(self, transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(f"{self.module}.MAX_OUTPUT_BYTES", 100_000)
        with pytest.raises(DeviceError, match="more than 100000 bytes"):
            transport.run(["yes"], timeout_s=20)

    def test_a_timeout_kills_the_whole_group(self, transport: Transport, tmp_path: Path) -> None:
        note = tmp_path / "pid"
        script = f"sleep 300 & echo $! > {note}; wait"
        transport.run(["true"], timeout_s=20)  # connected
        started = time.monotonic()
        with pytest.raises(LinkLost, match="time limit"):
            transport.run(["sh", "-c", script], timeout_s=0.5)
        assert time.monotonic() - started < 5
        assert wait_gone(int(note.read_text()))

    def test_ctrl_c_kills_the_whole_group(self, remake: str, tmp_path: Path) -> None:
        note = tmp_path / "pid"
        script = f"sleep 300 & echo $! > {note}; wait"
        code = (
            f"{remake}\n"
            f"try: transport.run(['sh', '-c', {script!r}], timeout_s=300)\n"
            "except KeyboardInterrupt: raise SystemExit(130)"
        )
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        try:
            while not (note.exists() and note.read_text().strip()):
                assert process.poll() is None
                time.sleep(0.02)
            os.kill(process.pid, signal.SIGINT)
            assert process.wait(10) == 130
        finally:
            process.kill()
        assert wait_gone(int(note.read_text()))

    def test_an_orphan_that_holds_the_pipe_does_not_hang_the_caller(
        self, transport: Transport
    ) -> None:
        transport.run(["true"], timeout_s=20)
        started = time.monotonic()
        done = transport.run(["sh", "-c", "setsid sleep 3 & echo hi"], timeout_s=30)
        assert done.stdout == b"hi\n" and time.monotonic() - started < 2.5

    @pytest.mark.parametrize("size", [0, 1, 3_000_000])
    def test_files_go_there_and_back(self, transport: Transport, tmp_path: Path, size: int) -> None:
        data = os.urandom(size)
        (tmp_path / "a").write_bytes(data)
        (tmp_path / "b").write_bytes(b"something longer" * 300_000)
        sent: list[int] = []
        transport.put(tmp_path / "a", str(tmp_path / "b"), sent.append)
        assert (tmp_path / "b").read_bytes() == data and sum(sent) == size
        transport.get(str(tmp_path / "b"), tmp_path / "c", len(data))
        assert (tmp_path / "c").read_bytes() == data

    def test_odd_names_are_only_names(self, transport: Transport, tmp_path: Path) -> None:
        odd = tmp_path / "a 'b' \"c\" $(touch d) ; é\n*"
        (tmp_path / "a").write_bytes(b"x")
        transport.put(tmp_path / "a", str(odd))
        transport.get(str(odd), tmp_path / "back", 1)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a", "back", odd.name])

    def test_get_refuses_what_is_too_large_or_not_a_file(
        self, transport: Transport, tmp_path: Path
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
        with pytest.raises(DeviceError, match="could not be copied"):
            transport.put(tmp_path / "absent", str(tmp_path / "b"))

    def test_it_can_be_closed_twice_and_used_again(self, transport: Transport) -> None:
        transport.close()
        transport.close()
        assert transport.run(["true"], timeout_s=20).returncode == 0
