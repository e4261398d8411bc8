"""The frame of the command line: help, usage errors, exit codes, signals, streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit import cli, errors
from edgekit.cli import command
from edgekit.cli.output import Output
from tests.edgekit.cli.conftest import Done, environment

Call = Callable[..., Done]


def test_help_names_every_command_and_imports_no_command(spawn: Call) -> None:
    done = spawn("--help")
    assert done.code == 0
    assert all(f"  {name} " in done.out for name in cli.COMMANDS)
    code = "import sys; from edgekit.cli import main; main(['--help']); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    ).stdout.splitlines()[-1]
    assert not {"typer", "rich", "pydantic", "numpy", "edgekit.cli.run"} & set(loaded.split())


def test_every_command_has_a_file_and_the_summary_of_its_docstring() -> None:
    folder = Path(cli.__file__).parent
    frame = {"__init__", "command", "guard", "options", "output", "progress", "tables"}
    helpers = {"count", "outcome", "reference"}
    assert {path.stem for path in folder.glob("*.py")} - frame - helpers == set(cli.COMMANDS)
    for name, summary in cli.COMMANDS.items():
        documented = (command.function_of(name).__doc__ or "").splitlines()[0]
        assert documented == summary


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name: str, call: Call) -> None:
    done = call(name, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: edgekit {name} ")
    assert "--json" in done.out
    assert call(name, "-h").out == done.out


def test_version(call: Call) -> None:
    from importlib.metadata import version

    assert call("--version").out == f"edgekit {version('edgekit')}\n"


def test_no_command_is_wrong_usage_and_shows_the_help(call: Call) -> None:
    done = call()
    assert (done.code, done.out) == (2, cli.help_text())


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        (["quantise"], "There is no command 'quantise'.", "Did you mean 'quantize'?"),
        (["--frobnicate"], "There is no option --frobnicate.", "edgekit --help"),
        (["init", "--frobnicate"], "No such option: --frobnicate", "`edgekit init --help`"),
        (["inspect"], "Missing argument", "`edgekit inspect --help`"),
        (["inspect", "absent"], "There is no file or folder absent.", ""),
        (["probe", "x", "--processes", "many"], "valid integer", "`edgekit probe --help`"),
    ],
)
def test_wrong_usage_has_one_form_and_code_2(
    arguments: list[str], message: str, remedy: str, call: Call
) -> None:
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    first, *rest = done.err.splitlines()
    assert first.startswith("edgekit: ") and message in first
    assert remedy in "".join(rest)
    with_json = call(*arguments, "--json") if arguments[0][0] != "-" else call("--json", *arguments)
    assert with_json.code == 2
    assert with_json.document["error"]["exit_code"] == 2
    assert message in with_json.document["error"]["message"]


def fake(function: Callable[..., int | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "function_of", lambda name: function)


@pytest.mark.parametrize(
    "error",
    [
        errors.ConfigError("edgekit.toml:3: x", remedy="mend it"),
        errors.NothingEligible("nothing"),
        errors.DeviceError("unreachable"),
        errors.MeasurementInvalid("throttled"),
        errors.DeployRolledBack("rolled back"),
        errors.ExportFailed("failed"),
    ],
)
def test_an_error_gives_its_exit_code_and_its_remedy(
    error: errors.EdgekitError, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def function(out: Output) -> None:
        raise error

    fake(function, monkeypatch)
    done = call("status")
    assert done.code == type(error).exit_code
    assert error.message in done.err and error.remedy in done.err
    assert "Traceback" not in done.err
    assert "Traceback" in call("status", "-vv").err
    document = call("status", "--json").document
    assert document["error"]["kind"] == type(error).__name__


def test_a_log_tail_is_shown(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def function(out: Output) -> None:
        raise errors.WorkerCrashed("died", kind="signal", log_tail=("last words",))

    fake(function, monkeypatch)
    done = call("status")
    assert (done.code, "  | last words" in done.err) == (8, True)


def test_an_unforeseen_error_is_called_a_bug(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def function(out: Output) -> None:
        raise KeyError("x")

    fake(function, monkeypatch)
    done = call("status")
    assert done.code == 1
    assert "This is a bug in edgekit" in done.err and "-vv" in done.err


def test_a_full_disk_is_no_bug(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def function(out: Output) -> None:
        raise OSError(28, "No space left on device", "/x/y")

    fake(function, monkeypatch)
    done = call("status")
    assert (done.code, done.err) == (1, "edgekit: status: No space left on device (/x/y).\n")


def test_options_of_display_may_come_first_and_quiet_is_quiet(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def function(out: Output) -> None:
        seen.append((out.json, out.verbosity))
        with out.progress.stage("work", 1) as stage:
            stage.advance(note="a step")
        out.result({}, lambda console: console.print("done"))

    fake(function, monkeypatch)
    assert call("-q", "status").err == ""
    plain = call("-v", "status")
    assert call("--json", "status").document == {}
    assert seen == [(False, -1), (False, 1), (True, 0)]
    assert plain.out == "done\n"
    assert plain.err.splitlines()[:2] == ["work ...", "work [1/1]: a step"]


PROGRAM = """
import os, sys, time
from edgekit.cli import command, main
def function(out):
    {body}
command.function_of = lambda name: function
sys.exit(main(sys.argv[1:]))
"""


def start(body: str, *arguments: str) -> subprocess.Popen[str]:
    code = PROGRAM.format(body=body.replace("\n", "\n    "))
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_json_is_alone_on_stdout_whatever_prints(tmp_path: Path) -> None:
    body = (
        "print('from python')\nos.system('echo from a child')\n"
        "out.result({'a': 'ä'}, lambda c: None)"
    )
    out, err = start(body, "status", "--json").communicate(timeout=60)
    assert json.loads(out) == {"a": "ä"}
    assert "from python" in err and "from a child" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_clean_up_and_give_130(number: signal.Signals, tmp_path: Path) -> None:
    mark = tmp_path / "cleaned"
    body = (
        "try:\n    print('ready', file=sys.stderr, flush=True)\n    time.sleep(60)\n"
        f"finally:\n    open({str(mark)!r}, 'w').close()"
    )
    process = start(body, "status", "--json")
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert mark.exists()
    assert "Interrupted" in err and "Traceback" not in err
    assert json.loads(out)["error"]["exit_code"] == 130


def test_a_second_signal_does_not_disturb_the_clean_up(tmp_path: Path) -> None:
    mark = tmp_path / "cleaned"
    body = (
        "try:\n    print('ready', file=sys.stderr, flush=True)\n    time.sleep(60)\n"
        "finally:\n    print('cleaning', file=sys.stderr, flush=True)\n    time.sleep(0.5)\n"
        f"    open({str(mark)!r}, 'w').close()"
    )
    process = start(body, "status")
    assert process.stderr is not None
    for line in ("ready\n", "cleaning\n"):
        assert process.stderr.readline() == line
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert (process.returncode, mark.exists()) == (130, True)


def test_a_closed_pipe_is_no_error() -> None:
    body = "out.result({'x': 'y' * 200_000}, lambda c: c.print('y' * 200_000))"
    for options in ([], ["--json"]):
        process = start(body, "status", *options)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == ""
        process.stderr.close()


@pytest.mark.timeout(120)
def test_bars_are_drawn_on_a_terminal_and_leave_lines_behind() -> None:
    import pty

    body = (
        "with out.progress.stage('exporting', 2) as stage:\n"
        "    stage.advance(note='tflite')\n    out.progress.log('a [bracketed] word')\n"
        "    time.sleep(0.3)\n    stage.advance()\n"
        "out.result({}, lambda c: c.print('table'))"
    )
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body.replace("\n", "\n    ")), "status"],
        env=environment(TERM="xterm-256color", COLUMNS="100"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            shown += os.read(leader, 4096)
        except OSError:  # the other side is closed
            break
    os.close(leader)
    assert process.stdout is not None
    assert process.stdout.read() == b"table\n"
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert b"1/2" in shown and b"tflite" in shown
    assert b"a [bracketed] word" in shown
    assert b"exporting: done in" in shown
