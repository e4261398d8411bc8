"""Bundle folders with damaged, swapped or foreign files, and random damage to manifests."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.bundle import Bundle
from edgekit.errors import BundleError
from edgekit.files import sha256_file
from tests.fixtures.bundles import ID, read, refused, write

quick = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Opened:
    """The files that were opened while it was on."""

    def __init__(self) -> None:
        self.paths: list[str] | None = None
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and self.paths is not None and isinstance(arguments[0], (str, bytes)):
            self.paths.append(os.fsdecode(arguments[0]))


OPENED = Opened()  # audit hooks cannot be removed, so that there is one for all tests


@pytest.fixture
def opened() -> Iterator[Opened]:
    yield OPENED
    OPENED.paths = None


def test_nothing_is_opened_before_the_manifest_is_checked(victim: Path, opened: Opened) -> None:
    document = read(victim)
    document["golden"]["labels"]["path"] = "../../secret"
    write(victim, document)
    opened.paths = []
    refused(victim)
    paths = [path for path in opened.paths if path.startswith(str(victim.parent))]
    assert paths == [str(victim / "manifest.json")]


# Files


def test_links_and_special_files_are_refused(victim: Path, tmp_path: Path) -> None:
    target = victim / "artifacts" / f"{ID}.pte"
    outside = tmp_path / "outside"
    shutil.copy(target, outside)
    target.unlink()
    target.symlink_to(outside)  # the same content, so that only the link is wrong
    assert f"'artifacts/{ID}.pte' is a symbolic link" in refused(victim).message
    target.unlink()
    os.mkfifo(target)  # must not be waited for
    assert "is not a regular file" in refused(victim).message
    target.unlink()
    assert f"artifacts/{ID}.pte is missing" in refused(victim).message
    shutil.copy(outside, target)
    Bundle.open(victim)
    (victim / "golden").rename(tmp_path / "golden")
    (victim / "golden").symlink_to(tmp_path / "golden")
    assert "'golden' is a symbolic link" in refused(victim).message
    (victim / "golden").unlink()
    shutil.copytree(tmp_path / "golden", victim / "golden")
    (victim / "manifest.json").rename(tmp_path / "manifest.json")
    assert "no manifest.json" in refused(victim).message
    (victim / "manifest.json").symlink_to(tmp_path / "manifest.json")
    assert "'manifest.json' is a symbolic link" in refused(victim).message


def test_a_link_to_the_whole_bundle_is_fine(victim: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(victim)
    assert Bundle.open(tmp_path / "link").path == victim


def test_strangers_are_refused(victim: Path) -> None:
    (victim / "artifacts/notes.txt").write_text("x")
    error = refused(victim)
    assert "'artifacts/notes.txt' is not in the manifest" in error.message
    assert error.remedy


def test_another_folder_is_not_searched(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert "no manifest.json; this is not a bundle" in refused(tmp_path).message


def test_an_unreadable_folder_is_an_error_of_the_bundle(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    deep.mkdir()
    (deep / "manifest.json").write_text("{}")
    at = os.open(deep, os.O_RDONLY)
    for _ in range(30):  # a path that is too long for the system
        os.mkdir("x" * 200, dir_fd=at)
        inner = os.open("x" * 200, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    assert "cannot be read" in refused(deep).message


def test_every_flipped_byte_of_a_file_is_found(victim: Path) -> None:
    files = sorted(p for p in victim.rglob("*") if p.is_file() and p.name != "manifest.json")
    assert len(files) == 13
    for path in files:
        content = path.read_bytes()
        for at in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            assert "is damaged" in refused(victim).message
            Bundle.open(victim, verify=False)
        for wrong in (content[:-1], content + b"\0", b""):
            path.write_bytes(wrong)
            for verify in (True, False):
                assert f"has {len(wrong)} bytes" in refused(victim, verify=verify).message
        path.write_bytes(content)
    Bundle.open(victim)


# Properties


def check_opened(bundle: Bundle) -> None:
    """What may be relied on after opening."""
    names = [file.path.casefold() for file in bundle.files]
    assert len(set(names)) == len(names)
    for file in bundle.files:
        full = bundle.file(file.path)
        assert full.is_relative_to(bundle.path)
        assert full.resolve() == full
        assert full.stat().st_size == file.size_bytes
        assert sha256_file(full) == file.sha256
    for artifact in bundle.manifest.artifacts:
        for tensor in bundle.manifest.golden.artifact_outputs[artifact.id]:
            assert bundle.tensor(tensor).shape[0] == bundle.manifest.golden.n


@quick
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_manifest_is_an_error_or_shows(
    victim: Path, pristine: Path, at: int, bit: int
) -> None:
    content = bytearray((pristine / "manifest.json").read_bytes())
    content[at % len(content)] ^= 1 << bit
    (victim / "manifest.json").write_bytes(content)
    try:
        bundle = Bundle.open(victim)
    except BundleError:
        return
    check_opened(bundle)
    assert bundle.digest != Bundle.open(pristine, verify=False).digest


@quick
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_manifest_is_refused(victim: Path, pristine: Path, share: float) -> None:
    content = (pristine / "manifest.json").read_bytes().rstrip()
    (victim / "manifest.json").write_bytes(content[: int(len(content) * share)])
    refused(victim)


nasty: st.SearchStrategy[Any] = st.sampled_from(
    [
        *("", ".", "..", "/", "../x", "/etc/passwd", "a\\b", "manifest.json", "x\0", "\ud800"),
        *(0, -1, 1, 2, 2**31, 2**53, 2**63, 10**400, 0.5, -0.0, 1e308),
        *(float("nan"), float("inf"), None, True, False, [], {}, [[]], {"": {}}, "0" * 64),
    ]
)
values = nasty | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def spots(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(items):
        yield document, key
        if isinstance(value, (dict, list)):
            yield from spots(value)


@quick
@given(data=st.data())
def test_any_changed_field_is_refused_or_harmless(
    victim: Path, pristine: Path, data: st.DataObject
) -> None:
    document = read(pristine)
    for _ in range(data.draw(st.integers(1, 3))):
        everywhere = list(spots(document))
        container, key = everywhere[data.draw(st.integers(0, len(everywhere) - 1))]
        kind = data.draw(st.sampled_from(["set", "set", "set", "delete", "copy"]))
        if kind == "set":
            container[key] = data.draw(values)
        elif kind == "delete":
            del container[key]
        elif isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            container[f"{key}2"] = copy.deepcopy(container[key])
    write(victim, document)
    try:
        bundle = Bundle.open(victim)
    except BundleError as e:
        assert e.message.startswith(str(victim))
        assert len(e.message) < 2000
    else:
        check_opened(bundle)
