"""The only program that edgekit keeps on a device: store, releases, the switch, jobs, facts.

    python3 -I -S agent.py ROOT            one JSON request on stdin, JSON lines on stdout:
                                           {"event": ...}* and then {"event": "result", ...} or
                                           {"event": "error", "kind": ..., "message": ...}
    python3 -I -S agent.py ROOT --work JOB the detached worker of a job (started by the agent)

One file, standard library only, Python 3.9+. Nothing that comes from the host is trusted to be a
safe name. Whatever is written is synced together with its folder and then renamed, so that a power
cut leaves the old state or the new one; a size is no proof of content after a power cut, so what
was received is hashed again from the disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import json
import os
import re
import secrets
import selectors
import shutil
import signal
import stat
import subprocess
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

Request = Dict[str, Any]
Emit = Callable[[Dict[str, Any]], None]

CHUNK = 1 << 20
MAX_TEXT = 1 << 18  # of one file among the facts
MAX_REPORT = 4 << 20  # of a runner's stdout
MAX_LOG = 1 << 16  # of a runner's stderr: its end
JOB_KEPT_S = 24 * 3600  # results that nobody fetched

PATTERNS = {
    "name": r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}",
    "sha256": r"[0-9a-f]{64}",
    "release": r"[0-9a-f]{16}",
    "job": r"[0-9a-f]{24}",
    "token": r"[0-9a-f]{32}",
    "path": r"[^/.\\:\0-\x1f][^/\\:\0-\x1f]{0,200}(/[^/.\\:\0-\x1f][^/\\:\0-\x1f]{0,200}){0,8}",
}


class Refused(Exception):
    """A request that cannot be served; ``kind`` tells the host what to make of it."""

    def __init__(self, kind: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.kind = kind
        self.details = details


def checked(kind: str, value: Any) -> str:
    """``value`` if it is a text of the kind's form; no form allows a leading dot or ``..``."""
    if not isinstance(value, str) or not re.fullmatch(PATTERNS[kind], value):
        raise Refused("invalid", "%r is not a valid %s" % (str(value)[:100], kind))
    return value


# --- files that survive a power cut ---------------------------------------------------------------


def sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: str) -> str:
    """Makes ``path`` and its parents durably; returns it."""
    if not os.path.isdir(path):
        parent = make_folder(os.path.dirname(path))
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        sync(parent)
    return path


def write_durable(path: str, text: str) -> None:
    temporary = "%s.%s.tmp" % (path, secrets.token_hex(4))
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(os.path.dirname(path))


def link_durable(target: str, path: str) -> None:
    """Makes ``path`` a symbolic link to ``target`` in one rename, whatever it was before."""
    temporary = "%s.%s.tmp" % (path, secrets.token_hex(4))
    os.symlink(target, temporary)
    os.replace(temporary, path)
    sync(os.path.dirname(path))


@contextlib.contextmanager
def staged(final: str) -> Iterator[str]:
    """An empty folder that becomes ``final`` when the block ends well; ``final`` must be absent."""
    parent = make_folder(os.path.dirname(final))
    staging = os.path.join(parent, ".new-" + secrets.token_hex(6))
    os.mkdir(staging, 0o700)
    try:
        yield staging
        for folder, _, files in os.walk(staging):
            for name in files:
                if not os.path.islink(os.path.join(folder, name)):
                    sync(os.path.join(folder, name))
            sync(folder)
        os.rename(staging, final)
        sync(parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def sha256_of(path: str) -> str:
    """Hash of a regular file as it is on the disk: cached pages are dropped first."""
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Refused("damaged", "%s is not a regular file" % path)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        while True:
            chunk = file.read(CHUNK)
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)


def read_json(path: str) -> Dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
    except (OSError, ValueError) as error:
        raise Refused("damaged", "%s cannot be read: %s" % (path, error)) from None
    if not isinstance(document, dict):
        raise Refused("damaged", "%s is not a JSON object" % path)
    return document


class Root:
    """The places below edgekit's folder on the device."""

    def __init__(self, path: str) -> None:
        self.path = path

    def at(self, *parts: str) -> str:
        return os.path.join(self.path, *parts)

    def blob(self, sha256: str) -> str:
        return self.at("store", "sha256", sha256[:2], sha256)

    def existing_blob(self, value: Any) -> str:
        path = self.blob(checked("sha256", value))
        if not os.path.isfile(path):
            raise Refused("incomplete", "the store lacks %s" % value)
        return path

    def release(self, model: str, release: str) -> str:
        return self.at("releases", checked("name", model), checked("release", release))

    def runtime(self, name: Any) -> str:
        path = self.at("runtimes", checked("name", name))
        if not os.path.isfile(os.path.join(path, "runtime.json")):
            raise Refused("incomplete", "the runtime %s is not on the device" % name)
        return path

    def job(self, job: Any) -> str:
        return self.at("spool", checked("job", job))


# --- one operation at a time ----------------------------------------------------------------------


def boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def process_table() -> str:
    """Names the numbers' owner: containers of one boot do not share process numbers."""
    try:
        return boot_id() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def identity(pid: int) -> Dict[str, Any]:
    """A process, told apart from a later one of the same number."""
    return {"table": process_table(), "pid": pid, "start": _start_of(pid)}


def _start_of(pid: int) -> str:
    """Start time of a living process, in clock ticks since boot; empty for a dead one."""
    try:
        with open("/proc/%d/stat" % pid, encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def alive(process: Any) -> bool:
    return (
        isinstance(process, dict)
        and process.get("table") == process_table()
        and bool(process.get("start"))
        and _start_of(int(process["pid"])) == process["start"]
    )


def _now() -> float:
    """Seconds since boot, sleep included; a device without a clock battery jumps in wall time."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lock:
    """Who may change the device. The file's flock guards one step, its content the whole operation.

    A lock is stale, and anybody may take it, when the device has booted since; when its owner was a
    process of this very machine and is gone; or when an owner elsewhere has let it run out. A
    measuring worker keeps it fresh for as long as it lives.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        try:
            content = json.loads(os.pread(descriptor, 1 << 16, 0) or b"{}")
            self.content: Dict[str, Any] = content if isinstance(content, dict) else {}
        except ValueError:
            self.content = {}

    def write(self, content: Dict[str, Any]) -> None:
        self.content = content
        data = json.dumps(content).encode()
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, data, 0)
        os.fsync(self._descriptor)

    def held(self) -> bool:
        if not self.content.get("token") or self.content.get("boot") != boot_id():
            return False
        if alive(self.content.get("worker")):
            return True
        owner = self.content.get("owner") or {}
        if owner.get("table") and owner["table"] == process_table():
            return alive(owner)
        return _now() < float(self.content.get("expires", 0))

    def require(self, token: Any) -> None:
        if not self.held() or self.content.get("token") != checked("token", token):
            raise Refused("lost", "this operation no longer holds the device's lock")
        self.renew(60)

    def renew(self, seconds: float) -> None:
        expires = max(float(self.content.get("expires", 0)), _now() + seconds)
        self.write(dict(self.content, expires=expires))


@contextlib.contextmanager
def exclusive(root: Root) -> Iterator[Lock]:
    """Keeps all other agents out for one step."""
    descriptor = os.open(root.at("lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise Refused("busy", "another operation is going on") from None
                time.sleep(0.02)
        yield Lock(descriptor)
    finally:
        os.close(descriptor)


def op_lock(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    job = request.get("job")
    with exclusive(root) as lock:
        if lock.held() and not (job and lock.content.get("job") == checked("job", job)):
            raise Refused("busy", "%s is working with this device" % lock.content.get("who"))
        # A worker that lives on belongs to the job that the new owner asks for.
        worker = lock.content.get("worker") if lock.held() else None
        token = secrets.token_hex(16)
        lock.write(
            {
                "token": token,
                "boot": boot_id(),
                "owner": request["owner"],
                "who": str(request["who"])[:200],
                "expires": _now() + min(float(request["seconds"]), 3600.0),
                "job": job,
                "worker": worker,
            }
        )
        # What is there came from owners that are gone; an old upload that still trickles in can
        # only reach its own folder.
        shutil.rmtree(root.at("store", "incoming"), ignore_errors=True)
        return {"token": token, "incoming": make_folder(root.at("store", "incoming", token))}


def op_unlock(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    with exclusive(root) as lock:
        if lock.content.get("token") == checked("token", request["token"]):
            shutil.rmtree(root.at("store", "incoming"), ignore_errors=True)
            if alive(lock.content.get("worker")):  # left to finish by itself
                lock.write(dict(lock.content, owner=None, expires=0))
            else:
                lock.write({})
    return {}


# --- the store ------------------------------------------------------------------------------------


def op_missing(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Which blobs the store lacks; with ``verify`` also those whose content is damaged."""
    missing = []
    for item in request["blobs"]:
        path = root.blob(checked("sha256", item["sha256"]))
        good = os.path.isfile(path) and os.path.getsize(path) == item["size"]
        if good and request.get("verify"):
            good = sha256_of(path) == item["sha256"]
        if not good:
            missing.append(item["sha256"])
    space = os.statvfs(root.path)
    return {"missing": missing, "free_bytes": space.f_bavail * space.f_frsize}


def op_commit(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Takes uploaded files into the store, each only if its hash is its name."""
    with exclusive(root) as lock:
        lock.require(request["token"])
        for value in request["blobs"]:
            sha256 = checked("sha256", value)
            part = root.at("store", "incoming", request["token"], sha256)
            if not os.path.lexists(part):
                raise Refused("incomplete", "%s was not uploaded" % sha256)
            sync(part)
            found = sha256_of(part)
            if found != sha256:
                os.unlink(part)
                raise Refused("hash", "what arrived as %s has the hash %s" % (sha256, found))
            os.chmod(part, 0o444)
            final = root.blob(sha256)
            make_folder(os.path.dirname(final))
            os.rename(part, final)
            sync(os.path.dirname(final))
            lock.renew(60)
            emit({"event": "stored", "sha256": sha256})
    return {}


# --- runtimes, releases, the switch ---------------------------------------------------------------


def op_runtime(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Assembles a runtime's folder out of blobs, unless it is there (and, if asked, intact)."""
    with exclusive(root) as lock:
        lock.require(request["token"])
        final = root.at("runtimes", checked("name", request["name"]))
        description = json.loads(request["description"])
        files = {checked("name", n): root.existing_blob(f["sha256"]) for n, f in
                 description["files"].items()}  # fmt: skip
        if os.path.isdir(final):
            if not request.get("verify") or not list(_runtime_problems(final)):
                return {"path": final}
            shutil.rmtree(final)
        with staged(final) as staging:
            for name, blob in files.items():
                target = os.path.join(staging, name)
                if description["files"][name]["executable"]:
                    os.chmod(blob, 0o555)
                try:
                    # A hard link, not a symbolic one: the loader finds $ORIGIN by the real path.
                    os.link(blob, target)
                except OSError:
                    shutil.copy(blob, target)
            with open(os.path.join(staging, "runtime.json"), "w", encoding="utf-8") as file:
                file.write(request["description"])
    return {"path": final}


def _runtime_problems(path: str) -> Iterator[str]:
    for name, item in read_json(os.path.join(path, "runtime.json")).get("files", {}).items():
        file = os.path.join(path, name)
        if not os.path.isfile(file):
            yield "%s is missing" % file
        elif sha256_of(file) != item.get("sha256"):
            yield "%s is damaged: its content does not have its hash" % file


def op_release(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Makes the release of a manifest, or adds links to it; links all lead into the store."""
    with exclusive(root) as lock:
        lock.require(request["token"])
        manifest = checked("sha256", request["manifest"])
        final = root.release(request["model"], manifest[:16])
        links = {checked("path", p): checked("sha256", s) for p, s in request["links"].items()}
        links["manifest.json"] = manifest
        for sha256 in links.values():
            root.existing_blob(sha256)
        if os.path.isdir(final):
            _place_links(root, final, final, links)
        else:
            with staged(final) as staging:
                _place_links(root, staging, final, links)
    return {"release": manifest[:16]}


def _place_links(root: Root, folder: str, final: str, links: Dict[str, str]) -> None:
    for path, sha256 in links.items():
        place = os.path.join(folder, path)
        target = os.path.relpath(root.blob(sha256), os.path.dirname(os.path.join(final, path)))
        if not (os.path.islink(place) and os.readlink(place) == target):
            make_folder(os.path.dirname(place))
            link_durable(target, place)


def _current(root: Root, model: str) -> Optional[str]:
    """The folder of the active activation, or None; a link to nowhere is damage, not absence."""
    link = root.at("current", checked("name", model))
    if not os.path.lexists(link):
        return None
    if not os.path.islink(link) or not os.path.isdir(link):
        raise Refused("damaged", "%s does not lead to an activation" % link)
    return os.path.realpath(link)


def _previous(activation: str) -> Optional[str]:
    link = os.path.join(activation, "previous")
    return os.path.realpath(link) if os.path.isdir(link) else None


def _active(activation: str) -> Dict[str, Any]:
    """What an activation activates, as apps on the device read it, and what it came after."""
    document = read_json(os.path.join(activation, "active.json"))
    before = _previous(activation)
    document["previous"] = (
        read_json(os.path.join(before, "active.json")).get("release") if before else None
    )
    document["activation"] = os.path.basename(activation)
    return document


def _switch(root: Root, model: str, active: Dict[str, Any]) -> Dict[str, Any]:
    """Writes a new activation and turns ``current`` to it by one rename."""
    release = root.release(model, active["release"])
    runtime = root.runtime(active["runtime_dir"])
    artifact = os.path.join(release, checked("path", active["path"]))
    if not os.path.isfile(artifact):
        raise Refused("incomplete", "%s has no %s" % (release, active["path"]))
    folder = make_folder(root.at("activations", checked("name", model)))
    current = _current(root, model)
    number = max([int(name) for name in os.listdir(folder) if name.isdigit()] or [0]) + 1
    final = os.path.join(folder, str(number))
    document = dict(
        active,
        schema=1,
        model=model,
        activated_utc=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        # Where to find things, seen from this file's folder.
        runtime_path=os.path.relpath(runtime, final),
        artifact_path=os.path.relpath(artifact, final),
    )
    with staged(final) as staging:
        os.symlink(os.path.relpath(release, final), os.path.join(staging, "release"))
        if current:
            os.symlink(os.path.relpath(current, final), os.path.join(staging, "previous"))
        with open(os.path.join(staging, "active.json"), "w", encoding="utf-8") as file:
            json.dump(document, file, indent=2, sort_keys=True)
    make_folder(root.at("current"))
    link_durable("../activations/%s/%d" % (model, number), root.at("current", model))
    return _active(final)


_CHOICE = ("release", "artifact_id", "path", "runtime", "runtime_dir", "threads")


def op_activate(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Activates a release; the same choice again changes nothing, so that ``previous`` stays."""
    with exclusive(root) as lock:
        lock.require(request["token"])
        wanted = {key: request["active"][key] for key in _CHOICE}
        current = _current(root, request["model"])
        if current:
            active = _active(current)
            if {key: active.get(key) for key in _CHOICE} == wanted:
                return {"active": active, "changed": False}
        return {"active": _switch(root, request["model"], wanted), "changed": True}


def op_rollback(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Activates what was active before; a second rollback therefore flips back."""
    with exclusive(root) as lock:
        lock.require(request["token"])
        current = _current(root, request["model"])
        if current is None:
            raise Refused("nothing", "nothing is active for %s" % request["model"])
        before = _previous(current)
        if before is None:
            raise Refused("nothing", "%s was never replaced: no previous one" % request["model"])
        wanted = {key: read_json(os.path.join(before, "active.json"))[key] for key in _CHOICE}
        return {"active": _switch(root, request["model"], wanted), "changed": True}


def _models(root: Root) -> List[str]:
    try:
        names = os.listdir(root.at("current"))
    except FileNotFoundError:
        return []
    return sorted(name for name in names if re.fullmatch(PATTERNS["name"], name)
                  and not name.endswith(".tmp"))  # fmt: skip


def _needed(root: Root, model: str) -> List[str]:
    """The activations of a model that must stay: the current one and the one before it."""
    current = _current(root, model)
    return [path for path in (current, current and _previous(current)) if path]


def _links(release: str) -> Iterator[Tuple[str, str]]:
    """Path and hash of everything that a release links to."""
    for folder, _, files in os.walk(release):
        for name in files:
            path = os.path.join(folder, name)
            if os.path.islink(path):
                yield path, os.path.basename(os.readlink(path))


def op_status(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """What is active, and what is wrong with it; ``verify`` hashes everything it needs."""
    activations, problems = [], []  # type: List[Dict[str, Any]], List[str]
    with exclusive(root) if request.get("verify") else contextlib.nullcontext():
        for model in _models(root):
            try:
                needed = _needed(root, model)
                activations.append(_active(needed[0]))
                for activation in needed:
                    problems += _activation_problems(root, activation, bool(request.get("verify")))
            except (Refused, OSError, KeyError) as error:
                problems.append("%s: %s" % (model, error))
    return {"activations": activations, "problems": problems}


def _activation_problems(root: Root, activation: str, verify: bool) -> Iterator[str]:
    release = os.path.realpath(os.path.join(activation, "release"))
    active = _active(activation)
    manifest = os.path.basename(os.path.realpath(os.path.join(release, "manifest.json")))
    if manifest[:16] != os.path.basename(release):
        yield "%s: the manifest is not that of this release" % release
    for path, sha256 in _links(release):
        if not os.path.isfile(path):
            yield "%s is missing from the store" % path
        elif verify and sha256_of(os.path.realpath(path)) != sha256:
            yield "%s is damaged: its content does not have its hash" % path
    runtime = root.runtime(active["runtime_dir"])
    if verify:
        yield from _runtime_problems(runtime)


def op_gc(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Removes what neither a current activation nor its previous one needs."""
    with exclusive(root) as lock:
        lock.require(request["token"])
        activations: Set[str] = set()
        releases: Set[str] = set()
        runtimes: Set[str] = set()
        blobs: Set[str] = set()
        for model in _models(root):
            for activation in _needed(root, model):
                activations.add(activation)
                releases.add(os.path.realpath(os.path.join(activation, "release")))
                runtimes.add(root.runtime(_active(activation)["runtime_dir"]))
        for release in releases:
            blobs.update(root.blob(sha256) for _, sha256 in _links(release))
        for runtime in runtimes:
            files = read_json(os.path.join(runtime, "runtime.json"))["files"].values()
            blobs.update(root.blob(file["sha256"]) for file in files)
        jobs = {path for path in _entries(root.at("spool")) if _is_fresh(path)}
        # From the top down: what a cut leaves behind never refers to what is gone.
        removed = _sweep(root.at("activations"), 2, activations)
        removed += _sweep(root.at("releases"), 2, releases)
        removed += _sweep(root.at("runtimes"), 1, runtimes)
        removed += _sweep(root.at("store", "sha256"), 2, blobs)
        removed += _sweep(root.at("spool"), 1, jobs)
        removed += _sweep(root.at("agent"), 1, {os.path.realpath(__file__)})
    return {"removed_bytes": removed}


def _entries(folder: str) -> List[str]:
    return [os.path.join(folder, n) for n in os.listdir(folder)] if os.path.isdir(folder) else []


def _sweep(folder: str, depth: int, keep: Set[str]) -> int:
    """Removes what lies ``depth`` levels down and is not to be kept; returns the bytes freed."""
    if depth > 1:
        return sum(_sweep(path, depth - 1, keep) for path in _entries(folder))
    removed = 0
    for path in _entries(folder):
        if path not in keep:
            removed += _size(path)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
    return removed


def _size(path: str) -> int:
    """Bytes that removing ``path`` frees: the last name of a file counts, earlier ones do not."""
    paths = [path]
    if os.path.isdir(path) and not os.path.islink(path):
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    states = [os.lstat(p) for p in paths]
    return sum(s.st_size for s in states if stat.S_ISREG(s.st_mode) and s.st_nlink == 1)


# --- jobs: runs of runners that outlive a lost connection -----------------------------------------


def op_start(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Starts a job's worker, or adopts the job if it is there already: its id is its content."""
    with exclusive(root) as lock:
        lock.require(request["token"])
        folder = root.job(request["job"])
        state = job_state(folder)
        if state == "running" or (state == "done" and _is_fresh(folder, 3600)):
            return {"state": state, "adopted": True}
        for index, step in enumerate(request["steps"]):
            step_command(root, folder, index, step)  # what is wrong is said before anything runs
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        document = {key: request.get(key) for key in ("steps", "gate", "token")}
        write_durable(os.path.join(folder, "request.json"), json.dumps(document))
        with open(os.path.join(folder, "worker.log"), "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", os.path.realpath(__file__), root.path, "--work",
                 request["job"]],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=root.path, start_new_session=True,
            )  # fmt: skip
        worker = identity(process.pid)
        write_durable(os.path.join(folder, "worker.json"), json.dumps(worker))
        lock.write(dict(lock.content, worker=worker))
        return {"state": "running", "adopted": False}


def job_state(folder: str) -> str:
    """``running``, ``done``, ``dead`` (ended before its end) or ``absent``."""
    if not os.path.isdir(folder):
        return "absent"
    running = alive(_job_worker(folder))
    with contextlib.suppress(OSError), open(os.path.join(folder, "events.jsonl"), "rb") as file:
        file.seek(max(0, os.path.getsize(file.name) - 64))
        if file.read().endswith(b'{"event": "done"}\n'):
            return "done"
    return "running" if running else "dead"


def _job_worker(folder: str) -> Any:
    with contextlib.suppress(Refused):
        return read_json(os.path.join(folder, "worker.json"))
    return None


def _is_fresh(folder: str, seconds: float = JOB_KEPT_S) -> bool:
    return 0 <= time.time() - os.path.getmtime(folder) < seconds


def op_follow(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Passes on a job's events from byte ``offset``, for at most ``wait_s``."""
    folder, offset = root.job(request["job"]), int(request["offset"])
    deadline, pause = time.monotonic() + min(float(request["wait_s"]), 600.0), 0.02
    while True:
        state = job_state(folder)  # before reading, so that an end is never seen before its events
        data = b""
        with contextlib.suppress(FileNotFoundError):
            with open(os.path.join(folder, "events.jsonl"), "rb") as file:
                file.seek(offset)
                data = file.read(4 * MAX_REPORT)
            for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
                offset += len(line)
                emit({"event": "line", "offset": offset, "line": json.loads(line)})
            if len(data) == 4 * MAX_REPORT:
                return {"state": "running", "offset": offset}
        if state != "running" or time.monotonic() > deadline:
            return {"state": state, "offset": offset}
        pause = 0.02 if data else min(2 * pause, 0.5)  # looking often would disturb the measurement
        time.sleep(pause)


def op_cancel(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Stops a job's worker and its runner, and removes the job."""
    folder = root.job(request["job"])
    worker = _job_worker(folder)
    if alive(worker):
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker["pid"], number)
            deadline = time.monotonic() + 3
            while alive(worker) and time.monotonic() < deadline:
                time.sleep(0.02)
    return op_forget(root, request, emit)


def op_forget(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    shutil.rmtree(root.job(request["job"]), ignore_errors=True)
    return {}


def runtime_command(folder: str) -> List[str]:
    """How to call the runner of an assembled runtime."""
    parts = read_json(os.path.join(folder, "runtime.json"))["argv"]
    return [part.replace("{dir}", folder).replace("{python}", sys.executable) for part in parts]


def step_command(root: Root, folder: str, index: int, step: Dict[str, Any]) -> List[str]:
    """The command line of one step: the runtime's own, and files out of the store."""
    argv = runtime_command(root.runtime(step["runtime"]))
    argv += ["--model", root.existing_blob(step["model"])]
    for sha256 in step["inputs"]:
        argv += ["--input", root.existing_blob(sha256)]
    for number in range(int(step["outputs"])):
        argv += ["--output", os.path.join(folder, "%d-%d.raw" % (index, number))]
    return argv + [str(flag) for flag in step["flags"]]


def work(root: Root, job: str) -> None:
    """The worker: runs a job's steps one after the other, each in a fresh process."""
    folder = root.job(job)
    request = read_json(os.path.join(folder, "request.json"))
    failed: Set[str] = set()
    with open(os.path.join(folder, "events.jsonl"), "ab", buffering=0) as events:
        for index, step in enumerate(request["steps"]):
            if step["key"] in failed:
                continue
            with contextlib.suppress(Refused, OSError), exclusive(root) as lock:
                if lock.content.get("token") == request["token"]:
                    lock.renew(float(step["timeout_s"]) + 60)
            result = _run_step(root, folder, index, step, request.get("gate") or {})
            if result["returncode"] != 0:
                failed.add(step["key"])
            events.write(json.dumps(result).encode() + b"\n")
        os.fsync(events.fileno())
        events.write(b'{"event": "done"}\n')


def _run_step(
    root: Root, folder: str, index: int, step: Dict[str, Any], gate: Dict[str, Any]
) -> Dict[str, Any]:
    result: Dict[str, Any] = {"event": "step", "index": index, "waited_s": _cool_down(gate)}
    if step.get("first"):
        result["facts_before"] = facts(root)
    result["started_utc"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        argv = step_command(root, folder, index, step)
        result.update(run_bounded(argv, folder, float(step["timeout_s"])))
    except (Refused, OSError) as error:
        result.update(returncode=127, timed_out=False, oom_kill=False, stdout="",
                      stderr="the runner cannot be started: %s" % error)  # fmt: skip
    if step.get("last") or result["returncode"] != 0:
        result["facts_after"] = facts(root)
    return result


def _cool_down(gate: Dict[str, Any]) -> float:
    """Waits until the device is cooler than the gate, within its limit; returns the seconds."""
    start = time.monotonic()
    while gate and time.monotonic() - start < gate["wait_s"]:
        temperatures = _read_all(["/sys/class/thermal/thermal_zone*/temp"]).values()
        hottest = max([int(t) for t in temperatures if t.strip().lstrip("-").isdigit()] or [0])
        if hottest < 1000 * gate["max_temp_c"]:
            break
        time.sleep(1)
    return round(time.monotonic() - start, 3)


def _oom_kills() -> int:
    with contextlib.suppress(OSError), open("/proc/vmstat", encoding="ascii") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _child_setup(parent: int) -> None:
    """In the runner's process: die with the worker, and be the first that a full memory kills."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    with contextlib.suppress(Exception):  # a minimal Python may lack ctypes; cancel still works
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)  # the worker died before its death could be asked for


def run_bounded(argv: List[str], folder: str, timeout_s: float) -> Dict[str, Any]:
    """Runs a command to its end or its time limit, keeping a bounded part of what it writes."""
    oom_before, deadline = _oom_kills(), time.monotonic() + timeout_s
    setup = functools.partial(_child_setup, os.getpid())
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        cwd=folder, start_new_session=True, preexec_fn=setup,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    texts = {process.stdout: bytearray(), process.stderr: bytearray()}
    timed_out = endless = False
    try:
        with selectors.DefaultSelector() as selector:
            for pipe in texts:
                selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map() and not timed_out and not endless:
                for key, _ in selector.select(1.0):
                    chunk = os.read(key.fd, 1 << 16)
                    text = texts[key.fileobj]  # type: ignore[index]
                    text += chunk
                    if key.fileobj is process.stderr:
                        del text[:-MAX_LOG]
                    endless = endless or len(text) > MAX_REPORT
                    if not chunk:
                        selector.unregister(key.fileobj)
                timed_out = time.monotonic() > deadline
        if not endless:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            timed_out = process.poll() is None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        process.stderr.close()
    out, err = (bytes(text).decode("utf-8", "replace") for text in texts.values())
    if endless:
        out, err = "", "the runner wrote more than %d bytes to its stdout" % MAX_REPORT
    code = 70 if endless else process.returncode
    return {"returncode": code, "timed_out": timed_out, "stdout": out, "stderr": err,
            "oom_kill": _oom_kills() > oom_before}  # fmt: skip


def op_selftest(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Runs a runtime's own small test; tells how it ended, which is the host's to judge."""
    folder = root.runtime(request["runtime"])
    command = [*runtime_command(folder), "--selftest"]
    return run_bounded(command, root.path, float(request["limit_s"]))


# --- facts: raw texts, parsed on the host ---------------------------------------------------------

FACT_FILES = [
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/device-tree/model",
    "/proc/device-tree/compatible",
    "/sys/firmware/devicetree/base/model",
    "/sys/firmware/devicetree/base/compatible",
    "/proc/sys/kernel/arch",
    "/etc/os-release",
    "/sys/class/dmi/id/product_name",
    "/sys/bus/platform/drivers/raspberrypi-firmware/*/get_throttled",
    "/sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
    "/sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq",
    "/sys/class/thermal/thermal_zone*/type",
    "/sys/class/thermal/thermal_zone*/temp",
]


def _read_all(patterns: List[str]) -> Dict[str, str]:
    texts = {}
    for pattern in patterns:
        for path in sorted(glob.glob(pattern)):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                texts[path] = file.read(MAX_TEXT).decode("utf-8", "replace")
    return texts


def facts(root: Root) -> Dict[str, Any]:
    """What the device says about itself, unparsed."""
    space = os.statvfs(root.path)
    uname = os.uname()
    libc = ""
    with contextlib.suppress(OSError, ValueError):
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    throttled = ""
    if shutil.which("vcgencmd"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            throttled = subprocess.run(
                ["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=5
            ).stdout
    return {
        "files": _read_all(FACT_FILES),
        "uname": {"sysname": uname.sysname, "release": uname.release, "machine": uname.machine},
        "libc": libc,
        "python": "%d.%d.%d" % sys.version_info[:3],
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "cpu_count": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        "vcgencmd": throttled,
        "disk_free_bytes": space.f_bavail * space.f_frsize,
        "qemu_cpu": os.environ.get("QEMU_CPU", ""),
    }


def op_facts(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    return {"facts": facts(root)}


OPERATIONS: Dict[str, Callable[[Root, Request, Emit], Dict[str, Any]]] = {
    name[3:]: function for name, function in sorted(globals().items()) if name.startswith("op_")
}


def main(argv: List[str]) -> int:
    root = Root(os.path.realpath(argv[1]))
    os.umask(0o077)
    if len(argv) == 4 and argv[2] == "--work":
        work(root, argv[3])
        return 0

    def emit(event: Dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    try:
        request = json.loads(sys.stdin.buffer.read())
        operation = OPERATIONS.get(request.get("op"))
        if request.get("schema") != 1 or operation is None:
            raise Refused("invalid", "unknown request %r" % request.get("op"))
        emit(dict(operation(root, request, emit), event="result"))
        return 0
    except Refused as refused:
        emit(dict(refused.details, event="error", kind=refused.kind, message=str(refused)))
    except OSError as error:
        kind = "space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "os"
        emit({"event": "error", "kind": kind, "message": str(error)})
    except (KeyError, TypeError, ValueError) as error:
        message = "malformed request or state: %s: %s" % (type(error).__name__, error)
        emit({"event": "error", "kind": "invalid", "message": message})
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
