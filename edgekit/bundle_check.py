"""Checks the folder of a bundle: exactly the files of its manifest, regular, whole, unchanged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from edgekit.errors import BundleError
from edgekit.files import sha256_file
from edgekit.manifest_check import (
    LABELS,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    RECIPE,
    listed_files,
    read_manifest,
)
from edgekit.types import Manifest

DROPPINGS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""What desktops leave in any folder that is looked at; never read, never packed."""

_MAX_ENTRIES = 20_000


def check_folder(folder: Path, *, where: str, verify: bool) -> tuple[Manifest, str]:
    """Checks everything about a bundle folder before anything in it is loaded.

    Args:
        folder: a real folder, links resolved.
        where: what it is called in errors.
        verify: whether to re-hash the files.

    Returns:
        the manifest, and the SHA-256 of its file as hex digits.
    """
    # First, so that another folder is called what it is and not searched to its depths.
    if not os.path.lexists(folder / MANIFEST):
        raise BundleError(f"{where}: no {MANIFEST}; this is not a bundle.")
    found = dict(_regular_files(folder, where))
    if MANIFEST not in found:
        raise BundleError(f"{where}: {MANIFEST} is not a file; this is not a bundle.")
    if found[MANIFEST] > MAX_MANIFEST_BYTES:
        raise BundleError(f"{where}/{MANIFEST}: larger than {MAX_MANIFEST_BYTES} bytes.")
    data = (folder / MANIFEST).read_bytes()
    manifest = read_manifest(data, where=f"{where}/{MANIFEST}")
    files = listed_files(manifest)
    for file in files:
        if file.path not in found:
            raise BundleError(f"{where}: {file.path} is missing.")
        if found[file.path] != file.size_bytes:
            raise BundleError(
                f"{where}: {file.path} has {found[file.path]} bytes, but the manifest says"
                f" {file.size_bytes}."
            )
    if strangers := sorted(set(found) - {file.path for file in files} - {MANIFEST}):
        raise BundleError(
            f"{where}: {strangers[0]!r} is not in the manifest.",
            remedy="Keep other files outside the bundle.",
        )
    for file in files if verify else ():
        if (digest := sha256_file(folder / file.path)) != file.sha256:
            raise BundleError(
                f"{where}: {file.path} is damaged: its SHA-256 is {digest}, but the manifest"
                f" says {file.sha256}.",
                remedy="Copy the bundle again, or make it again with edgekit quantize.",
            )
    return manifest, hashlib.sha256(data).hexdigest()


def refuse_to_replace(dest: Path, *, bundles_too: bool) -> None:
    """Replacing a folder deletes what is in it, so that only a bundle or nothing may be there."""
    if not dest.exists():
        return
    if not dest.is_dir():
        raise BundleError(f"{dest}: is a file, not a folder.")
    names = {path.name for path in dest.iterdir()} - DROPPINGS
    expected = {MANIFEST, RECIPE, LABELS, "artifacts", "golden"}
    if names and (bundles_too or MANIFEST not in names or not names <= expected):
        raise BundleError(
            f"{dest}: is not empty{'' if bundles_too else ' and not a bundle'}.",
            remedy="Give another folder, or remove this one first.",
        )


def _regular_files(folder: Path, where: str) -> Iterator[tuple[str, int]]:
    """Relative path and size of all files below; links and special files are errors."""
    pending, count = [""], 0
    while pending:
        prefix = pending.pop()
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                path, count = f"{prefix}{entry.name}", count + 1
                if count > _MAX_ENTRIES:
                    raise BundleError(f"{where}: more than {_MAX_ENTRIES} files.")
                if entry.name in DROPPINGS:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{path}/")
                elif entry.is_file(follow_symlinks=False):
                    yield path, entry.stat(follow_symlinks=False).st_size
                else:
                    kind = "a symbolic link" if entry.is_symlink() else "not a regular file"
                    raise BundleError(f"{where}: {path!r:.200} is {kind}.")
