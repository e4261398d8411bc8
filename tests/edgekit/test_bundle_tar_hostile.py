"""Hostile and damaged archives: nothing lands outside, nothing stays behind."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.bundle import Bundle, write_bundle
from edgekit.errors import BundleError
from edgekit.files import sha256_file
from tests.fixtures.bundles import bundle_parts

Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    write_bundle(folder / "bundle", **bundle_parts(folder / "parts")).pack(folder / "b.tar")
    return folder / "b.tar"


def members(path: Path) -> list[Member]:
    with tarfile.open(path) as tar:
        return [(m, f.read() if (f := tar.extractfile(m)) else b"") for m in tar.getmembers()]


def pack(path: Path, content: list[Member], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w:", format=form) as tar:
        for member, data in content:
            tar.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", data: bytes = b"") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info, data


def refused(archive: Path, tmp_path: Path) -> str:
    """Opens the archive in a folder of its own, which must be as empty afterwards as before."""
    around = tmp_path / "around"
    around.mkdir(exist_ok=True)
    with pytest.raises(BundleError) as e:
        Bundle.open(archive, extract_to=around / "out")
    assert list(around.iterdir()) == []
    assert e.value.message.startswith(str(archive))
    return e.value.message


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (member("../evil", data=b"x"), "'../evil' leaves the bundle"),
        (member("/tmp/evil", data=b"x"), "is not a relative path"),
        (member("golden/../../evil", data=b"x"), "leaves the bundle"),
        (member("a\\b", data=b"x"), "is not a relative path"),
        (member(".hidden", data=b"x"), "empty or hidden"),
        (member("link", tarfile.SYMTYPE, "/etc/passwd"), "'link' is a link or device"),
        (member("link", tarfile.LNKTYPE, "manifest.json"), "'link' is a link or device"),
        (member("dev", tarfile.CHRTYPE), "'dev' is a link or device"),
        (member("pipe", tarfile.FIFOTYPE), "'pipe' is a link or device"),
        (member("stray", data=b"x"), "'stray' is not in the manifest"),
        (member("manifest.json", data=b"{}"), "'manifest.json' occurs twice"),
        (member("./labels.txt", data=b"x"), "'labels.txt' occurs twice"),
        (member("other/manifest.json", data=b"{}"), "is not in the manifest"),
    ],
)
def test_a_hostile_member(packed: Path, tmp_path: Path, extra: Member, message: str) -> None:
    for content in ([*members(packed), extra], [extra, *members(packed)]):
        assert message in refused(pack(tmp_path / "x.tar", content), tmp_path)


def test_a_link_in_place_of_a_file(packed: Path, tmp_path: Path) -> None:
    content = [row for row in members(packed) if row[0].name != "labels.txt"]
    link = member("labels.txt", tarfile.SYMTYPE, "/etc/passwd")
    assert "is a link" in refused(pack(tmp_path / "x.tar", [*content, link]), tmp_path)


def test_a_missing_and_a_wrong_file(packed: Path, tmp_path: Path) -> None:
    content = members(packed)
    names = [info.name for info, _ in content]
    for drop, message in [
        ("manifest.json", "no manifest.json in the archive"),
        ("labels.txt", "'labels.txt' is missing from the archive"),
    ]:
        kept = [row for row in content if row[0].name != drop]
        assert message in refused(pack(tmp_path / "x.tar", kept), tmp_path)
    at = names.index("golden/labels.bin")
    for data, message in [(b"x" * 128, "is damaged"), (b"x", "has 1 bytes, but the manifest")]:
        wrong = [*content[:at], member("golden/labels.bin", data=data), *content[at + 1 :]]
        assert message in refused(pack(tmp_path / "x.tar", wrong), tmp_path)


def test_a_hostile_manifest_is_refused_before_anything_is_unpacked(
    packed: Path, tmp_path: Path
) -> None:
    content = members(packed)
    text = content[0][1].replace(b"golden/labels.bin", b"golden/../labels.")
    hostile = pack(tmp_path / "x.tar", [member("manifest.json", data=text), *content[1:]])
    assert "leaves the bundle" in refused(hostile, tmp_path)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_is_read(packed: Path, tmp_path: Path, form: int) -> None:
    Bundle.open(pack(tmp_path / "x.tar", members(packed), form)).close()


def test_a_sparse_member_is_refused(packed: Path, tmp_path: Path) -> None:
    with open(tmp_path / "hole", "wb") as f:
        f.truncate(2**30)
    subprocess.run(["tar", "cSf", "x.tar", "hole"], cwd=tmp_path, check=True)
    assert (tmp_path / "x.tar").stat().st_size < 2**20
    assert "'hole' is a link or device" in refused(tmp_path / "x.tar", tmp_path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_gigantic_header_is_not_read(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, 20 * 2**30
    with open(tmp_path / "x.tar", "wb") as f:
        f.write(info.tobuf(tarfile.GNU_FORMAT))
        f.truncate(30 * 2**30)
    tracemalloc.start()
    try:
        message = refused(tmp_path / "x.tar", tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "not a readable tar archive" in message
    assert peak < 8 * 2**20


def test_a_gigantic_manifest_is_not_unpacked(tmp_path: Path) -> None:
    info = tarfile.TarInfo("manifest.json")
    info.size = 20 * 2**30
    with open(tmp_path / "x.tar", "wb") as f:
        f.write(info.tobuf(tarfile.GNU_FORMAT))
        f.truncate(30 * 2**30)
    assert "manifest.json is larger than" in refused(tmp_path / "x.tar", tmp_path)


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.tar", [member(f"f{i}") for i in range(20_001)])
    assert "more than 20000 entries" in refused(archive, tmp_path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\0" * 4096, b"\x1f\x8b" + b"x" * 600])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    message = refused(tmp_path / "x.tar", tmp_path)
    assert "not a readable tar archive" in message or "no manifest.json" in message


def test_compressed_archives_are_refused(packed: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        tar.add(packed.parent / "bundle", arcname=".")
    assert "not a readable tar archive" in refused(tmp_path / "x.tar", tmp_path)


def test_an_interrupt_leaves_no_temporary_folder(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    fail = [True]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if fail and event == "open" and str(arguments[0]).endswith("labels.txt"):
            raise KeyboardInterrupt

    sys.addaudithook(hook)
    try:
        with pytest.raises(KeyboardInterrupt):
            Bundle.open(packed)
    finally:
        fail.clear()
    assert os.listdir(tmp_path) == []


edits: st.SearchStrategy[Callable[[bytes], bytes]] = st.one_of(
    st.builds(
        lambda at, new: lambda b: b[: at % len(b)] + new + b[at % len(b) + len(new) :],
        st.integers(0, 10**6),
        st.binary(min_size=1, max_size=16),
    ),
    st.builds(lambda at: lambda b: b[: at % len(b)], st.integers(0, 10**6)),
    st.builds(
        lambda at, n: lambda b: b[: at % len(b)] + b[at % len(b) + n :],
        st.integers(0, 10**6),
        st.sampled_from([1, 512, 1024]),
    ),
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(edit=edits)
def test_a_damaged_archive_is_refused_or_the_same_bundle(
    packed: Path, tmp_path: Path, edit: Callable[[bytes], bytes]
) -> None:
    archive = tmp_path / "x.tar"
    archive.write_bytes(edit(packed.read_bytes()))
    try:
        # Damage to padding, times or owners, which nobody reads, does no harm.
        with Bundle.open(archive) as bundle:
            for file in bundle.files:
                assert sha256_file(bundle.file(file.path)) == file.sha256
    except BundleError as e:
        assert e.message.startswith(str(archive))
    assert os.listdir(tmp_path) == ["x.tar"]
