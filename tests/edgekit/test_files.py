"""Files and folders that are replaced whole, with an interrupt or a crash at every step."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgekit import files
from edgekit.files import (
    fsync_dir,
    remove_stale_staging,
    sha256_file,
    staged_dir,
    staged_file,
    write_atomic,
)


class Tripwire:
    """Calls something at the n-th file system operation of this thread (Python's audit events)."""

    EVENTS = ("open", "os.", "shutil.", "ctypes.dlsym", "fcntl.")

    def __init__(self) -> None:
        self.left = 0
        self.action: Callable[[], None] | None = None
        self.thread = threading.get_ident()
        sys.addaudithook(self)

    def __call__(self, event: str, _: object) -> None:
        if self.action is None or threading.get_ident() != self.thread:
            return
        if event.startswith(self.EVENTS):
            self.left -= 1
            if self.left == 0:
                action, self.action = self.action, None
                action()

    def arm(self, after: int, action: Callable[[], None]) -> None:
        self.left, self.action = after, action

    def disarm(self) -> bool:
        """Whether it was still armed, i.e. whether there were fewer operations."""
        armed, self.action = self.action is not None, None
        return armed


TRIPWIRE = Tripwire()  # audit hooks cannot be removed, so that there is one for all tests


@pytest.fixture
def tripwire() -> Iterator[Tripwire]:
    yield TRIPWIRE
    TRIPWIRE.disarm()


def interrupt() -> None:
    raise KeyboardInterrupt


def fill(folder: Path, text: str) -> None:
    (folder / "sub").mkdir()
    (folder / "a").write_text(text)
    (folder / "sub/b").write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()
    }


OLD, NEW = {"a": "old", "sub/b": "old"}, {"a": "new", "sub/b": "new"}


def replace_final(parent: Path) -> None:
    with staged_dir(parent / "final") as staging:
        fill(staging, "new")


def prepared(parent: Path) -> Path:
    parent.mkdir()
    (parent / "final").mkdir()
    fill(parent / "final", "old")
    return parent


@pytest.fixture(params=["exchange", "two renames"])
def swap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "two renames":  # what a kernel without renameat2 gets
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)


def test_a_folder_appears_whole(tmp_path: Path, swap: None) -> None:
    for text in ("one", "two"):
        with staged_dir(tmp_path / "deep/final") as staging:
            assert staging.parent == tmp_path / "deep"
            fill(staging, text)
        assert content(tmp_path / "deep/final") == {"a": text, "sub/b": text}
        assert os.listdir(tmp_path / "deep") == ["final"]


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    parent = prepared(tmp_path / "p")
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), staged_dir(parent / "final") as staging:
            fill(staging, "new")
            raise error
        assert content(parent / "final") == OLD
        assert os.listdir(parent) == ["final"]


def test_an_interrupt_at_any_step_leaves_the_old_or_the_new_folder(
    tmp_path: Path, swap: None, tripwire: Tripwire
) -> None:
    outcomes = set()
    for step in range(1, 1000):
        parent = prepared(tmp_path / str(step))
        tripwire.arm(step, interrupt)
        with contextlib.suppress(KeyboardInterrupt):
            replace_final(parent)
        finished = tripwire.disarm()
        now = content(parent / "final")
        assert now in (OLD, NEW), step
        outcomes.add(now["a"])
        remove_stale_staging(parent)
        assert os.listdir(parent) == ["final"], step
        if finished:
            assert now == NEW
            break
    assert outcomes == {"old", "new"}
    assert step > 15


def test_a_crash_at_any_step_leaves_the_old_or_the_new_folder(
    tmp_path: Path, swap: None, tripwire: Tripwire
) -> None:
    outcomes = set()
    for step in range(1, 1000):
        parent = prepared(tmp_path / str(step))
        if (child := os.fork()) == 0:
            tripwire.arm(step, lambda: os._exit(9))
            replace_final(parent)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        remove_stale_staging(parent)
        assert os.listdir(parent) == ["final"], step
        now = content(parent / "final")
        assert now in (OLD, NEW), step
        outcomes.add(now["a"])
        if code == 0:
            break
    assert outcomes == {"old", "new"}


def test_the_folder_is_never_missing_for_a_reader(tmp_path: Path) -> None:
    parent = prepared(tmp_path / "p")
    reads: list[bool] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            reads.append((parent / "final/sub/b").exists())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        replace_final(parent)
    done.set()
    reader.join()
    assert len(reads) > 30
    assert all(reads)


def test_a_folder_that_is_being_written_is_not_stale(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edgekit.files import staged_dir\n"
        "with staged_dir(Path(sys.argv[1]) / 'final') as s:\n"
        "    (s / 'a').write_text('new'); print(flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        writer.stdout.readline()
        assert remove_stale_staging(tmp_path) == ()
        (staging,) = tmp_path.iterdir()
        writer.kill()
        writer.wait()
        assert remove_stale_staging(tmp_path) == (staging,)
    assert list(tmp_path.iterdir()) == []


def test_a_cleaner_never_takes_what_is_just_being_made(tmp_path: Path) -> None:
    """Between the making of a folder or file and its lock, a cleaner may come: it is made again."""
    done = threading.Event()

    def clean() -> None:
        while not done.is_set():
            remove_stale_staging(tmp_path)

    cleaners = [threading.Thread(target=clean) for _ in range(2)]
    for cleaner in cleaners:
        cleaner.start()
    try:
        for number in range(300):
            with staged_dir(tmp_path / "folder") as folder:
                (folder / "number").write_text(str(number))
            assert (tmp_path / "folder" / "number").read_text() == str(number)
            write_atomic(tmp_path / "file", str(number))
            assert (tmp_path / "file").read_text() == str(number)
    finally:
        done.set()
        for cleaner in cleaners:
            cleaner.join()


@pytest.mark.parametrize("kind", ["tmp", "staging"])
def test_a_cleaner_never_takes_what_was_made_again(
    tmp_path: Path, tripwire: Tripwire, kind: str
) -> None:
    """At each step of a cleaner another one comes, and the writer makes again what that removed."""
    path = tmp_path / f".x.edgekit-{kind}-00000000"
    kept: list[bool] = []  # whether it was there still, for each time that it was made again

    for step in range(1, 100):
        path.touch() if kind == "tmp" else path.mkdir()
        with contextlib.ExitStack() as writer:

            def race(writer: contextlib.ExitStack = writer) -> None:
                if not remove_stale_staging(tmp_path):
                    return
                if kind == "tmp":
                    writer.callback(os.close, files._new_locked_file(path))
                else:
                    writer.enter_context(files._new_locked_dir(path))
                writer.callback(lambda: kept.append(path.exists()))

            tripwire.arm(step, race)
            remove_stale_staging(tmp_path)
            finished = tripwire.disarm()
        remove_stale_staging(tmp_path)
        if finished:
            break
    assert finished
    assert kept
    assert all(kept)


def test_an_old_folder_comes_back_only_where_there_is_none(tmp_path: Path) -> None:
    aside = tmp_path / ".final.edgekit-old-00000000"
    aside.mkdir()
    (aside / "a").write_text("old")
    assert remove_stale_staging(tmp_path) == (tmp_path / "final",)
    assert content(tmp_path / "final") == {"a": "old"}
    aside.mkdir()
    assert remove_stale_staging(tmp_path) == (aside,)
    assert content(tmp_path / "final") == {"a": "old"}


def test_only_own_leftovers_are_removed(tmp_path: Path) -> None:
    for name in (".final.staging", ".x.edgekit-staging-0", "x.edgekit-tmp-00000000", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / ".x.edgekit-staging-00000000").symlink_to(tmp_path / "precious")
    before = sorted(os.listdir(tmp_path))
    assert remove_stale_staging(tmp_path) == ()
    assert sorted(os.listdir(tmp_path)) == before


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    parent = prepared(tmp_path / "p")
    (tmp_path / "link").symlink_to(parent / "final")
    with staged_dir(tmp_path / "link") as staging:
        fill(staging, "new")
    assert (tmp_path / "link").is_symlink()
    assert content(parent / "final") == NEW


def test_a_file_is_not_replaced_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "final").write_text("a file")
    with pytest.raises(NotADirectoryError), staged_dir(tmp_path / "final"):
        raise AssertionError("not reached")
    assert (tmp_path / "final").read_text() == "a file"


def test_a_file_is_written_whole_with_an_interrupt_at_any_step(
    tmp_path: Path, tripwire: Tripwire
) -> None:
    path, outcomes = tmp_path / "f", set()
    for step in range(1, 100):
        path.write_text("old")
        tripwire.arm(step, interrupt)
        with contextlib.suppress(KeyboardInterrupt):
            write_atomic(path, "new é")
        finished = tripwire.disarm()
        outcomes.add(path.read_text(encoding="utf-8"))
        assert os.listdir(tmp_path) == ["f"], step
        if finished:
            break
    assert outcomes == {"old", "new é"}


def test_a_file_gets_the_mode_of_any_other_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_atomic(tmp_path / "ours", b"\x00\xff")
    assert (tmp_path / "ours").read_bytes() == b"\x00\xff"
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failing_writer_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staged_file(tmp_path / "f") as f:
        f.write(b"half")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "missing/f", "x")


def test_hash_and_fsync(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    fsync_dir(tmp_path)
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "f") == expected
