"""What a device's folder holds, seen without edgekit: releases, hashes, parts, neighbours.

    python3 -I -S inspector.py ROOT [FOLDER ...]      one JSON object on stdout

A program of its own, standard library only, so that it runs on any device; it shares no code with
the agent whose work it judges. It looks at everything below ROOT's parent folder and below the
FOLDERs, too: nothing beside ROOT may change.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import Any


def sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()


def files(folder: str) -> Iterator[str]:
    for where, _, names in os.walk(folder):
        for name in names:
            yield os.path.join(where, name)


def check(root: str, problems: list[str], path: str, wanted: str) -> None:
    if not os.path.isfile(path):
        problems.append(f"{path} is missing")
    elif sha256(path) != wanted:
        problems.append(f"{path} has another hash")
    elif not os.path.realpath(path).startswith(os.path.realpath(root) + os.sep):
        problems.append(f"{path} leads out of the root")


def activation(root: str, folder: str) -> dict[str, Any]:
    """One activation: what it activates, and what is wrong with what it needs."""
    problems: list[str] = []
    with open(os.path.join(folder, "active.json"), encoding="utf-8") as file:
        active = json.load(file)
    release = os.path.realpath(os.path.join(folder, "release"))
    manifest_path = os.path.join(release, "manifest.json")
    if sha256(manifest_path)[:16] != os.path.basename(release):
        problems.append(f"{manifest_path} is not the manifest of its release")
    with open(manifest_path, encoding="utf-8") as file:
        manifest = json.load(file)
    (artifact,) = [a for a in manifest["artifacts"] if a["id"] == active["artifact_id"]]
    check(root, problems, os.path.join(release, artifact["path"]), artifact["sha256"])
    golden = manifest["golden"]
    for tensor in golden["inputs"] + golden["outputs"] + golden["artifact_outputs"][artifact["id"]]:
        check(root, problems, os.path.join(release, tensor["path"]), tensor["sha256"])
    runtime = os.path.join(root, "runtimes", active["runtime_dir"])
    with open(os.path.join(runtime, "runtime.json"), encoding="utf-8") as file:
        parts = json.load(file)["files"]
    for name, item in parts.items():
        check(root, problems, os.path.join(runtime, name), item["sha256"])
    return {"release": os.path.basename(release), "artifact": artifact["id"], "problems": problems}


def current(root: str, model: str) -> dict[str, Any]:
    folder = os.path.realpath(os.path.join(root, "current", model))
    try:
        found = activation(root, folder)
        before = os.path.join(folder, "previous")
        found["previous"] = None
        if os.path.lexists(before):
            previous = activation(root, os.path.realpath(before))
            found["previous"] = previous["release"]
            found["problems"] += previous["problems"]
        return found
    except (OSError, ValueError, KeyError) as error:
        return {"release": None, "problems": [f"{folder}: {error!r}"]}


def beside(root: str, folders: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Everything next to the root and below the folders, with type, mode and content."""
    found = {}
    for folder in (os.path.dirname(root), *folders):
        for where, below, names in os.walk(folder):
            below[:] = [name for name in below if os.path.join(where, name) != root]
            for path in (os.path.join(where, name) for name in below + names):
                found[path] = (os.lstat(path).st_mode, content(path))
    return found


def content(path: str) -> str:
    """Hash or target; empty for what has none, or none that this user may read."""
    if os.path.islink(path):
        return os.readlink(path)
    if not stat.S_ISREG(os.lstat(path).st_mode) or not os.access(path, os.R_OK):
        return ""
    return sha256(path)


def processes() -> list[str]:
    """Command lines of this device's processes that edgekit started."""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except (OSError, NotADirectoryError):
            continue
        line = b" ".join(words).decode("utf-8", "replace")
        if (
            name != str(os.getpid())
            and "inspector" not in line
            and any(mark in line for mark in ("io.BufferedReader", "/agent/", "/runtimes/"))
        ):
            found.append(line[:200])
    return found


def inspect(root: str, *folders: str) -> dict[str, Any]:
    links = os.path.join(root, "current")
    names = os.listdir(links) if os.path.isdir(links) else []
    blobs = list(files(os.path.join(root, "store", "sha256")))
    incoming = os.path.join(root, "store", "incoming")
    return {
        "current": {name: current(root, name) for name in names if not name.startswith(".")},
        "blobs": [os.path.basename(b) for b in blobs if sha256(b) == os.path.basename(b)],
        "false": [b for b in blobs if sha256(b) != os.path.basename(b)],
        "parts": {os.path.basename(p): (os.path.getsize(p), sha256(p)) for p in files(incoming)},
        "beside": beside(root, folders),
        "processes": processes(),
    }


if __name__ == "__main__":
    print(json.dumps(inspect(*sys.argv[1:])))
