"""Devices that lie, flood, or never answer: the host ends in time, small, and inside its folders.

The server is a real sshd; what it starts instead of Python is a program that plays an agent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks import sshd
from benchmarks.faults import bundles
from benchmarks.faults.bundles import Release
from benchmarks.sshd import Server
from edgekit.errors import DeviceError, RunnerFailed
from edgekit.targets.answer import MAX_LINE, MAX_VALUES, Answer, parse_answer, printable, shortened
from edgekit.targets.results import runner_exit
from edgekit.targets.runner import judge
from tests.targets.ssh_tools import target_of

ROOT = Path(__file__).parents[2]
MEMORY_MB = 700
SECONDS = 90

#: Plays remote.py and the agent at once: reads the program that the host sends, greets, and answers
#: what ANSWERS says, by operation. A value that begins with ``!`` is Python that writes frames.
_PLAYER = """
import json, os, re, sys, time
words = " ".join(sys.argv)
size = int(re.search(r"read\\((\\d+)\\)", words).group(1))
data = b""
while len(data) < size:
    data += os.read(0, size - len(data))
header = eval(data.decode().rpartition("main(**")[2].strip()[:-1])
out = sys.stdout.buffer
def frame(kind, content=b""):
    out.write(kind + len(content).to_bytes(4, "big") + content)
    out.flush()
def line(value):
    text = value if isinstance(value, str) else json.dumps(value)
    for start in range(0, len(text), 60000):
        frame(b"O", text[start:start + 60000].encode())
    frame(b"O", b"\\n")
def end(code=0):
    frame(b"X", b"code=%d" % code)
out.write(b"\\0edgekit remote 1\\n"); out.flush()
answers = json.load(open({answers!r}))
if header["verb"] == "run":
    stdin = b""
    while len(stdin) < header["stdin_bytes"]:
        stdin += os.read(0, 65536)
    op = json.loads(stdin)["op"] if stdin.startswith(b'{{"schema"') else "boot"
else:
    op = header["verb"]
answer = answers.get(op, answers.get("*"))
if isinstance(answer, str) and answer.startswith("!"):
    exec(answer[1:])
else:
    line(answer)
    end()
"""

_HONEST = {
    "boot": {"root": "/r", "agent": "/r/agent.py", "python": [3, 11]},
    "facts": {"event": "result", "facts": {"uname": {"machine": os.uname().machine}}},
    "lock": {"event": "result", "token": "0" * 32, "incoming": "/r/in"},
    "missing": {"event": "result", "missing": [], "parts": {}, "free_bytes": 10**12},
    "*": {"event": "result"},
}

#: Runs in a process of its own, whose memory and time are measured.
_DEPLOY = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.targets import channel, ssh_exchange
from edgekit.targets.device import connect
from edgekit.types import ProbeRequest, Target
ssh_exchange.SILENCE_S, ssh_exchange.STALL_S, ssh_exchange.LEAST_RATE = 6.0, 8.0, 1e6
from edgekit.targets import job, ssh
from edgekit.targets.agent.runner_core import peak_rss_bytes
from edgekit.targets import device as devices
job.GRACE_S, devices.TIMEOUT_S, ssh.COPY_RETRIES, channel.BOOT_S = 2.0, 1.0, 1, 20.0

def talk(target, bundle):
    with connect(Target(**target)) as device:
        if bundle is None:
            device.status(verify=True)
            device.gc()
            return "ended"
        (artifact,) = bundle.manifest.artifacts
        request = ProbeRequest(artifact.id, artifact.sha256, 1, 1, 0.05)
        (result,) = device.probe(bundle, [request])
        return f"probe: {result.status} {result.error.message if result.error else ''}"

def outcome(given):
    started, code = time.monotonic(), 0
    try:
        if given["bundle"] is None:
            said = talk(given["target"], None)
        else:
            with Bundle.open(Path(given["bundle"])) as bundle:
                said = talk(given["target"], bundle)
    except EdgekitError as error:
        code, said = error.exit_code, f"{type(error).__name__} {error}"
    return code, said, time.monotonic() - started, peak_rss_bytes() // 2**20

cases = [json.loads(line) for line in sys.stdin]
with ThreadPoolExecutor(len(cases)) as threads:
    waiting = {n: threads.submit(outcome, given) for n, given in enumerate(cases) if given["waits"]}
    for n, given in enumerate(cases):
        print(json.dumps(waiting[n].result() if n in waiting else outcome(given)), flush=True)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = sshd.start(tmp_path_factory.mktemp("sshd"))
    yield running
    running.stop()


def play(
    server: Server, folder: Path, cases: Sequence[dict[str, object]], bundle: Path | None = None
) -> list[tuple[int, str]]:
    """What becomes of a host that talks to devices with these answers: exit codes and words.

    Its memory and time are bounded, and nothing but its own folders has changed. Devices that only
    make it wait are waited for side by side, the others come one after the other.
    """
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    (home / ".ssh" / "known_hosts").write_text(server.known_hosts_line)
    lines = []
    for number, answers in enumerate(cases):
        script, player = folder / f"answers-{number}", folder / f"player-{number}"
        script.write_text(json.dumps({**_HONEST, **answers}))
        player.write_text(f"#!{sys.executable} -IS\n" + _PLAYER.format(answers=str(script)))
        player.chmod(0o755)
        target = target_of(server, python=str(player), connect_timeout_s="15", reconnect_s="0.2")
        board = {"name": "board", "transport": "ssh", "address": target.address,
                 "workdir": "/r", "options": target.options}  # fmt: skip
        given = {
            "target": board,
            "bundle": None if bundle is None else str(bundle),
            "waits": "sleep" in script.read_text(),
        }
        lines.append(json.dumps(given))
    before = set(folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", _DEPLOY],
        input="\n".join(lines),
        env={**os.environ, "HOME": str(home), "PYTHONPATH": str(ROOT)},
        cwd=folder, capture_output=True, text=True, timeout=SECONDS * len(cases),
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    found: list[tuple[int, str]] = []
    for line in done.stdout.splitlines():
        code, said, seconds, memory_mb = json.loads(line)
        assert seconds < SECONDS and memory_mb < MEMORY_MB, (cases[len(found)], seconds, memory_mb)
        found.append((code, said))
    assert len(found) == len(cases)
    new = {path.relative_to(folder).parts[0] for path in set(folder.rglob("*")) - before}
    assert new <= {"home"}, new
    return found


_FLOOD = "!while True: frame(b'O', b'x' * 60000)"
_BRACKETS = "!\nfor _ in range(400): frame(b'O', b'[' * 60000)\nline('')\nend()"
_VALUES = "!line('{\"event\": \"result\", \"x\": [' + '[],' * 3000000 + '0]}'); end()"
_ALIVE = "!\nwhile True:\n    frame(b'H'); time.sleep(0.2)"


_ANSWERS: list[tuple[str, object, str]] = [
    ("boot", _FLOOD, "more than"),
    ("boot", _ALIVE, "LinkLost"),
    ("boot", "!time.sleep(600)", "nothing was heard"),
    ("boot", "{", "something else"),
    ("boot", {"root": 5, "agent": "/a", "python": [3, 11]}, "cannot be used"),
    ("boot", {"root": "/r", "agent": "/a", "python": ["3", "11"]}, "cannot be used"),
    ("boot", {"root": "../r\n", "agent": "/a", "python": [3, 11]}, "cannot be used"),
    ("status", _FLOOD, "more than"),
    ("status", "!\nwhile True: line({'event': 'x'})", "has no end"),
    ("status", _BRACKETS, "larger than any honest one"),
    ("status", _VALUES, "larger than any honest one"),
    ("status", "!frame(b'O', bytes(2000000))", "something else"),
    ("status", "!frame(b'Q')", "something else"),
    ("status", "!line({'event': 'result'}); line({'event': 'result'}); end()", "goes on after"),
    ("status", "!end(3)", "without an answer"),
    ("status", {"event": "result", "activations": 5, "problems": []}, "cannot be used"),
    ("status", {"event": "result", "activations": [{}], "problems": []}, "cannot be used"),
    ("gc", '{"event": "result", "removed_bytes": 1e999}', "cannot be used"),
    ("gc", '{"event": "result", "removed_bytes": ' + "9" * 5000 + "}", "something else"),
    ("lock", {"event": "result", "token": None, "incoming": "/x"}, "cannot be used"),
    ("gc", {"event": "error", "kind": "x", "message": "\x1b[2J" + "y" * 10**6}, "?[2J"),
]


def test_an_answer_that_is_none_is_an_error_of_the_device(server: Server, tmp_path: Path) -> None:
    honest = {"status": {"event": "result", "activations": [], "problems": [], "unused": []}}
    found = play(server, tmp_path, [{**honest, op: answer} for op, answer, _ in _ANSWERS])
    for (op, answer, words), (code, said) in zip(_ANSWERS, found, strict=True):
        assert code == 4 and words in said, (op, str(answer)[:100], code, said)
        assert len(said) < 2000 and printable(said) == said


def test_answers_are_bounded() -> None:
    for text in ("[" * (MAX_VALUES + 1), " " * (MAX_LINE + 1)):
        with pytest.raises(DeviceError, match="larger than"):
            parse_answer(text, "board")
    assert parse_answer('{"a": "\\u001b[31m"}', "board") == {"a": "?[31m"}
    answer = Answer({"n": True, "t": "x" * 501, "p": "a/b", "l": [1, "2"], "o": [],
                     "big": 2**60}, "board")  # fmt: skip
    for ask in (
        lambda: answer.number("n"),
        lambda: answer.number("absent"),
        lambda: answer.number("big"),  # no JSON file of ours can hold it
        lambda: answer.text("t"),
        lambda: answer.path("p"),
        lambda: answer.items_of("l", int),
        lambda: answer.object_of("o"),
    ):
        with pytest.raises(DeviceError, match="cannot be used"):
            ask()
    assert shortened("a" * 10, 5) == "aa..."


def test_halves_of_characters_are_not_recorded_and_yet_name_files() -> None:
    half = "\udce9"
    answer = parse_answer(json.dumps({"t": half, "p": f"/home/{half}"}), "board")
    assert answer.text("t") == printable(half) == "?" and answer.path("p") == f"/home/{half}"
    ended = runner_exit({"returncode": 1, "stderr": half})
    with pytest.raises(RunnerFailed) as caught:
        judge(ended, what="x")
    (caught.value.message + "".join(caught.value.log_tail)).encode()


_TAKE = "!\nleft = header['size']\nwhile left: left -= len(os.read(0, min(left, 65536)))\nend()"
_GIVE = "!\nframe(b'A', b'identity=1')\nwhile True: frame(b'O', bytes(60000))"
#: A device that gives, or takes, a little now and then.
_DRIPS = "!\nframe(b'A', b'identity=1')\nwhile True: frame(b'O', b'x'); time.sleep(0.5)"
_SIPS = "!\nwhile True: os.read(0, 16384); frame(b'H'); time.sleep(0.2)"
_EMPTY = "!\nframe(b'A', b'identity=1')\nwhile True: frame(b'O'); time.sleep(0.2)"
_RUNS_ON = {"event": "result", "state": "running", "offset": 0}
_AWAY = "../../../../../../../../tmp/edgekit-was-here"


def _report(**changes: object) -> str:
    tensor = {"name": _AWAY, "dtype": "float32", "shape": [1, bundles.WIDTH]}
    numbers = ("load_ns", "first_ns", "warmup_runs", "peak_rss_bytes", "samples")
    report = {
        "schema": 1, "runner": _AWAY, "runner_version": _AWAY, "runtime_version": _AWAY,
        "threads": 1, "latency_ns": [1000] * 10, "inputs": [tensor], "outputs": [tensor],
        **dict.fromkeys(numbers, 1), **changes,
    }  # fmt: skip
    return json.dumps(report)


def _followed(*events: dict[str, object], state: str = "done") -> str:
    """Answers to ``follow``: these events, and that the job is in this state."""
    lines: list[dict[str, object]] = [
        {"event": "line", "offset": n + 1, "line": event} for n, event in enumerate(events)
    ]
    lines.append({"event": "result", "state": state, "offset": len(lines)})
    return f"!\nfor value in {lines!r}: line(value)\nend()"


def _step(index: object, stdout: str = "", returncode: int = 0) -> dict[str, object]:
    return {"event": "step", "index": index, "returncode": returncode, "stdout": stdout,
            "stderr": "", "started_utc": _AWAY * 100}  # fmt: skip


_MEASURED = _followed(_step(0, _report()), _step(1, _report()))
_SHORT = "!frame(b'A', b'identity=1'); frame(b'O', b'short'); end()"

#: Answers, the exit code (0: one candidate has failed, no more), and words of what is said.
_LIES: list[tuple[dict[str, object], int, str]] = [
    ({"missing": {"event": "result", "missing": ["x"] * 200_000}}, 4, "cannot be used"),
    ({"missing": {"event": "result", "missing": [], "parts": []}}, 4, "cannot be used"),
    ({"put": _ALIVE}, 4, "no byte moved"),
    ({"put": _SIPS}, 4, "were not copied within"),
    ({"put": _FLOOD}, 4, "answers a copy with output"),
    ({"put": _FLOOD.replace("O", "A")}, 4, "no byte moved"),
    ({"follow": _RUNS_ON}, 4, "did not end within"),
    ({"follow": _followed(_step(99))}, 4, "nobody asked for"),
    ({"follow": _followed(_step(0, _report()), _step(0, _report()))}, 4, "nobody asked for"),
    ({"follow": _followed(_step(_AWAY))}, 0, "ended before its time"),
    ({"follow": _followed(_step(0, _report(load_ns=10**400)))}, 0, "cannot be used"),
    ({"follow": _followed(_step(0, _report(load_ns=2**60)))}, 0, "cannot be used"),
    ({"follow": _followed(_step(0, "[" * 10**5))}, 0, "cannot be used"),
    ({"follow": _MEASURED, "get": _GIVE}, 0, "more than"),
    ({"follow": _MEASURED, "get": _ALIVE}, 4, "no byte moved"),
    ({"follow": _MEASURED, "get": _EMPTY}, 4, "no byte moved"),
    ({"follow": _MEASURED, "get": _DRIPS}, 4, "were not copied within"),
    ({"follow": _MEASURED, "get": _GIVE.replace("O", "E")}, 0, "something else"),
    ({"follow": _MEASURED, "get": _SHORT}, 0, "bytes, not"),
]


def test_a_measurement_on_a_device_that_lies_ends(
    server: Server, releases: list[Release], tmp_path: Path
) -> None:
    (artifact,) = [sha for sha, (path, _) in releases[0].blobs.items() if path.suffix == ".pte"]
    missing = {"event": "result", "missing": [artifact], "parts": {}, "free_bytes": 10**12}
    cases = [{"missing": missing, "put": _TAKE, **answers} for answers, _, _ in _LIES]
    found = play(server, tmp_path, cases, releases[0].path)
    for (answers, wanted, words), (code, said) in zip(_LIES, found, strict=True):
        assert code == wanted and words in said, (str(answers)[:200], code, said)
    assert not Path("/tmp/edgekit-was-here").exists()
