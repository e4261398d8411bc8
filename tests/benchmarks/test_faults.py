from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.faults import __main__ as faults
from benchmarks.faults import cuts, inspector
from benchmarks.faults.boards import NamespaceBoard
from benchmarks.faults.crowd import Crowd, crowd
from benchmarks.faults.cuts import Cut
from benchmarks.faults.kept import Kept


@pytest.mark.skipif(os.geteuid() != 0, reason="links and disks of one's own need root")
def test_a_quick_campaign_finds_no_violation_and_leaves_nothing_behind(tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    # PyTorch makes the second one wherever it is imported, and leaves it.
    places = {"TMPDIR": str(temporary), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "torch")}
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.faults", "--quick", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, **places},
    )
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    kinds = {row["kind"]: row for row in document["rows"]}
    assert set(kinds) == {*faults.CHEAP, "all"}
    assert kinds["all"]["cuts"] == str(faults.QUICK_CUTS) and kinds["all"]["violations"] == "0"
    assert all(bar["kept"] for bar in document["bars"])
    assert not list(temporary.iterdir())
    mounts = Path("/proc/self/mounts").read_text()
    assert str(tmp_path) not in mounts


_WRITABLE = """
import os, sys
for line in open("/proc/self/mounts"):
    path = line.split()[1].encode().decode("unicode_escape")
    if os.access(path, os.W_OK):
        print(path)
for path in sys.argv[1:]:
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError:
        continue
    print(path)
"""


@pytest.fixture
def board(tmp_path: Path) -> Iterator[NamespaceBoard]:
    if os.geteuid() != 0:
        pytest.skip("links and disks of one's own need root")
    made = NamespaceBoard(tmp_path / "board")
    yield made
    made.stop()


def test_a_device_in_namespaces_can_write_to_its_disk_and_its_processes_only(
    board: NamespaceBoard, tmp_path: Path
) -> None:
    """Opened for writing is all that these are: written they are not."""
    kept = [path for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger",
                              "/sys/kernel/uevent_helper") if os.path.exists(path)]  # fmt: skip
    writable = subprocess.run(
        ["nsenter", "--target", str(board.pid), "--mount", "--pid", sys.executable, "-I", "-S",
         "-c", _WRITABLE, *kept],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(writable.stdout.split()) == {"/proc", str(tmp_path / "board" / "disk")}


def test_a_crowd_that_touches_something_else_or_leaves_a_process_is_found_out(
    board: NamespaceBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "ORPHAN_S", 0.5)
    mark, ended = secrets.token_hex(8), threading.Event()
    neighbour = Path(f"/proc/{board.pid}/root{tmp_path}/board/disk/neighbour")

    def meddle() -> None:
        while not ended.wait(0.01):
            neighbour.write_bytes(os.urandom(8))

    meddler = threading.Thread(target=meddle)
    left = subprocess.Popen(["sleep", "60"], env={**os.environ, cuts.MARK: mark})
    try:
        meddler.start()
        found = crowd(board, [], mark, 0)
    finally:
        ended.set()
        meddler.join()
        left.kill()
        left.wait()
    assert "something beside the root has changed" in found.violations
    assert "still running: sleep 60" in found.violations


def _options(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**{"kinds": ["reset"], "cuts": 2, "seed": 0, **changes})


def test_a_violation_misses_the_bar_and_is_told() -> None:
    good, bad = Cut("reset", True, "put", 4), Cut("reset", False, "commit", 0)
    bad.violations.append("after the cut: nothing is active any more")
    report = faults.evaluate([good, bad], None, {}, _options())
    assert [bar.kept for bar in report.bars] == [False, True]
    assert any("nothing is active any more" in note for note in report.notes)
    assert [bar.kept for bar in faults.evaluate([good], None, {}, _options()).bars] == [True, False]


def test_deploys_at_once_that_fail_miss_the_bar() -> None:
    cuts = [Cut("reset", True, "put", 4)] * 2
    crowd = Crowd(10, 9, 3, 1.0, ("9 of 10 ended well",))
    report = faults.evaluate(cuts, crowd, {}, _options())
    assert [bar.kept for bar in report.bars] == [True, True, False]


@pytest.mark.parametrize("arguments", [["--kinds", "earthquake"], ["--cuts", "many"]])
def test_wrong_options_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        faults.main(arguments)
    assert caught.value.code == 2


def test_the_inspector_sees_what_is_wrong(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It judges the agent, so it must not overlook what it is there for."""
    root = tmp_path / "root"
    good = root / "store" / "sha256" / "2c" / hashlib.sha256(b"x").hexdigest()
    good.parent.mkdir(parents=True)
    good.write_bytes(b"x")
    (good.parent / ("0" * 64)).write_bytes(b"y")
    (root / "current").mkdir()
    (root / "current" / "m").symlink_to("../activations/m/1")
    (tmp_path / "neighbour").write_text("n")
    home = tmp_path_factory.mktemp("home")
    (home / "folder").mkdir()
    (home / "folder" / "link").symlink_to("nowhere")
    os.mkfifo(home / "pipe")
    found = inspector.inspect(str(root), str(home), str(tmp_path))
    assert found["blobs"] == [good.name]
    assert [Path(path).name for path in found["false"]] == ["0" * 64]
    assert found["current"]["m"]["release"] is None and found["current"]["m"]["problems"]
    others = {str(home / name) for name in ("folder", "folder/link", "pipe")}
    assert set(found["beside"]) == {str(tmp_path / "neighbour"), *others}


def test_a_campaign_goes_on_from_what_is_kept(tmp_path: Path) -> None:
    kept = Kept(tmp_path, ["reset"], 3)
    kept.add(Cut("reset", True, "put", 4, violations=["x"]), 2)
    kept.gathered(Crowd(10, 9, 3, 1.0, ("9 of 10 ended well",)))
    (file,) = tmp_path.iterdir()
    with file.open("a") as half:
        half.write('{"cut": {"kind": "res')
    again = Kept(tmp_path, ["reset"], 3)
    assert (again.cuts, again.tries, again.crowd) == (kept.cuts, 2, kept.crowd)
    assert not Kept(tmp_path, ["reset"], 4).cuts, "another campaign"
