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
import fnmatch
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
import zlib
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

Request = Dict[str, Any]
Emit = Callable[[Dict[str, Any]], None]

CHUNK = 1 << 20
MAX_TEXT = 1 << 18  # of one file among the facts
MAX_REPORT = 4 << 20  # of a runner's stdout
MAX_LOG = 1 << 16  # of a runner's stderr: its end
JOB_KEPT_S = 24 * 3600  # results that nobody fetched, files that were half sent
LEASE_S = 120.0  # without a sign of life from its owner, the lock may be taken
RESERVE_BYTES = 16 << 20  # where less is free, nothing half sent is kept
MAX_UNPACKED = 4 << 30  # of one archive
MAX_MEMBERS = 50_000
FIRST_RUN_S = 240.0
LONGEST_STEP_S = 900.0  # unpacking a runtime on a slow card, and its first run

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


def temporary_name(path: str) -> str:
    """A name for what becomes ``path``; no model, file or folder can have it, for it begins with a
    dot."""
    return os.path.join(os.path.dirname(path), ".new-" + secrets.token_hex(6))


def write_durable(path: str, text: str) -> None:
    temporary = temporary_name(path)
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(os.path.dirname(path))


def link_durable(target: str, path: str) -> None:
    """Makes ``path`` a symbolic link to ``target`` in one rename, whatever it was before."""
    temporary = temporary_name(path)
    os.symlink(target, temporary)
    os.replace(temporary, path)
    sync(os.path.dirname(path))


@contextlib.contextmanager
def staged(final: str) -> Iterator[str]:
    """An empty folder that becomes ``final`` when the block ends well; ``final`` must be absent."""
    parent = make_folder(os.path.dirname(final))
    staging = temporary_name(final)
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


def crc_of(path: str) -> int:
    """CRC-32 of a file as it is on the disk; it finds what a failing card does."""
    value = 0
    with open(path, "rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while True:
            chunk = file.read(CHUNK)
            if not chunk:
                return value
            value = zlib.crc32(chunk, value)


class Contents:
    """What files hold: each is read once, however many names it has.

    Once ``closed``, nothing is read: what was not read before is taken for sound, and ``skipped``.
    """

    def __init__(self) -> None:
        self.closed = False
        self.skipped = False
        self._found: Dict[Tuple[Any, ...], Any] = {}

    def are(self, path: str, expected: Any, of: Callable[[str], Any] = sha256_of) -> bool:
        """Whether the file's SHA-256, or its CRC-32 with ``crc_of``, is the expected one."""
        state = os.lstat(path)
        # Files of the store and of runtimes are replaced, never written in place.
        key = (of, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
        if key not in self._found:
            if self.closed:
                self.skipped = True
                return True
            try:
                self._found[key] = of(path)
            except (Refused, OSError) as error:
                self._found[key] = Refused("damaged", str(error))
        found = self._found[key]
        if isinstance(found, Refused):
            raise found
        return bool(found == expected)


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
    return {"table": process_table(), "pid": pid, "start": _start_of(pid) or ""}


def _start_of(pid: int) -> Optional[str]:
    """Start time of a living process, in clock ticks since boot; empty for one that has ended and
    was not waited for; None where /proc shows none of this number."""
    try:
        # Its main thread's file: emulators make up /proc/PID/stat for those who read their own.
        path = "/proc/%d/task/%d/stat" % (pid, pid)
        with open(path, encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return "" if fields[0] in "ZX" else fields[19]


def alive(process: Any) -> bool:
    return (
        isinstance(process, dict)
        and process.get("table") == process_table()
        and bool(process.get("start"))
        and _start_of(int(process["pid"])) == process["start"]
    )


def has_ended(process: Dict[str, Any]) -> bool:
    """Whether a process of this table has surely ended. /proc may hide those of other users
    (hidepid), which then are neither alive nor gone; but a free number is nobody's."""
    start = _start_of(int(process["pid"]))
    if start is not None:
        return start != process.get("start") or not start
    try:
        os.kill(int(process["pid"]), 0)
    except PermissionError:
        return False
    except (ProcessLookupError, OverflowError):
        return True
    return False


def _now() -> float:
    """Seconds since boot, sleep included; a device without a clock battery jumps in wall time."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lock:
    """Who may change the device. The file's flock guards one step, its content the whole operation.

    A lock is stale, and anybody may take it, when the device has booted since; when its owner was a
    process of this very machine and is gone; when the machine that asks says that the owner was a
    process of its own and is gone; or when an owner elsewhere, or one that is not to be seen, gave
    no sign of life for LEASE_S: neither a step nor a byte of an upload. A measuring worker holds it
    for as long as it lives.
    """

    def __init__(self, root: Root, descriptor: int) -> None:
        self._root = root
        self._descriptor = descriptor
        try:
            content = json.loads(os.pread(descriptor, 1 << 16, 0) or b"{}")
            self.content: Dict[str, Any] = content if isinstance(content, dict) else {}
        except ValueError:
            self.content = {}

    def write(self, content: Dict[str, Any]) -> None:
        self.content = content
        # Padded and written in place: a full disk has no block for a file that was cut to nothing.
        os.pwrite(self._descriptor, json.dumps(content).encode().ljust(2048), 0)
        os.ftruncate(self._descriptor, max(2048, len(json.dumps(content))))
        os.fsync(self._descriptor)

    def measuring(self) -> bool:
        """Whether a worker of this lock still runs, whoever follows it."""
        return self._is_of_this_boot() and alive(self.content.get("worker"))

    def owned(self, gone: Any = None) -> bool:
        """Whether somebody is at work; ``gone`` is an owner that is known to be no more."""
        owner = self.content.get("owner") or {}
        if not self._is_of_this_boot() or not owner or owner == gone:
            return False
        if owner.get("table") and owner["table"] == process_table():
            if alive(owner):
                return True
            if has_ended(owner):
                return False
        return _now() < float(self.content.get("expires", 0)) or self._uploading()

    def require(self, token: Any) -> None:
        """Goes on for the holder of ``token``; also after its time, if nobody else came since."""
        if not self._is_of_this_boot() or self.content.get("token") != checked("token", token):
            raise Refused("lost", "this operation no longer holds the device's lock")
        self.renew()

    def renew(self, seconds: float = LEASE_S) -> None:
        self.write(dict(self.content, expires=_now() + max(seconds, LEASE_S)))

    def _is_of_this_boot(self) -> bool:
        return bool(self.content.get("token")) and self.content.get("boot") == boot_id()

    def _uploading(self) -> bool:
        incoming = self._root.at("store", "incoming", checked("token", self.content["token"]))
        return any(_is_fresh(part, LEASE_S) for part in _entries(incoming))


@contextlib.contextmanager
def exclusive(root: Root, wait_s: float = 10.0) -> Iterator[Lock]:
    """Keeps all other agents out for one step."""
    descriptor = os.open(root.at("lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise Refused("busy", "another operation is going on") from None
                time.sleep(0.02)
        yield Lock(root, descriptor)
    finally:
        os.close(descriptor)


def op_lock(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Takes the lock; waits up to ``wait_s`` for it. Who has it is told with the refusal, so that
    the host can say whether that was a process of its own, and is ``gone``."""
    deadline = time.monotonic() + min(float(request.get("wait_s", 0)), 60.0)
    while True:
        try:
            with exclusive(root) as lock:
                return _take_lock(root, lock, request)
        except Refused as refused:
            if refused.kind not in ("busy", "measuring") or time.monotonic() >= deadline:
                raise
        time.sleep(0.1 + secrets.randbelow(200) / 1000)


def _take_lock(root: Root, lock: Lock, request: Request) -> Dict[str, Any]:
    job = request.get("job")
    # A worker that lives on belongs to the job that the new owner asks for.
    adopts = bool(job) and lock.content.get("job") == checked("job", job)
    owned, measuring = lock.owned(request.get("gone")), lock.measuring()
    if owned or (measuring and not adopts):
        raise Refused(
            "busy" if owned else "measuring",
            "%s is working with this device" % lock.content.get("who"),
            owner=lock.content.get("owner"),
        )
    token = secrets.token_hex(16)
    lock.write(
        {
            "token": token,
            "boot": boot_id(),
            "owner": request["owner"],
            "who": str(request["who"])[:200],
            "expires": _now() + LEASE_S,
            "job": job,
            "worker": lock.content.get("worker") if measuring else None,
        }
    )
    incoming = root.at("store", "incoming", token)
    # A full disk must not keep anybody from cleaning up; an upload is refused for it anyway.
    with contextlib.suppress(OSError):
        _adopt_parts(root, incoming)
    return {"token": token, "incoming": incoming}


def _adopt_parts(root: Root, incoming: str) -> None:
    """Takes over what earlier uploads left half sent; who still writes to it only reaches a copy
    that is gone. The host compares its hash before it goes on from there."""
    earlier = _entries(root.at("store", "incoming"))
    parts = [part for folder in earlier for part in _entries(folder)]
    if parts and _short_of_space(root):
        parts = []
    make_folder(incoming)
    being_written = _open_files() if parts else set()
    for part in parts:
        state, name = os.lstat(part), os.path.basename(part)
        if (stat.S_ISREG(state.st_mode) and state.st_size and _is_fresh(part)
                and re.fullmatch(PATTERNS["sha256"], name)):  # fmt: skip
            place = os.path.join(incoming, name)
            if (state.st_dev, state.st_ino) in being_written:
                shutil.copyfile(part, place)
            else:
                os.rename(part, place)
            # A commit takes a file's write permission before it moves it: a power cut between the
            # two leaves a part that its own owner could not go on with.
            os.chmod(place, 0o644)
    for folder in earlier:
        shutil.rmtree(folder, ignore_errors=True)


def _open_files() -> Set[Tuple[int, int]]:
    """Device and inode of all files that this user's processes have open."""
    found = set()
    for path in glob.iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            state = os.stat(path)
            found.add((state.st_dev, state.st_ino))
    return found


def _short_of_space(root: Root, least: int = RESERVE_BYTES) -> bool:
    space = os.statvfs(root.path)
    return space.f_bavail * space.f_frsize < least


def _is_full(root: Root) -> bool:
    return _short_of_space(root, 1 << 20)


def op_unlock(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Gives the lock back. What was half sent stays for the next upload, unless space is short."""
    with exclusive(root) as lock:
        if lock.content.get("token") == checked("token", request["token"]):
            incoming = root.at("store", "incoming", request["token"])
            if _short_of_space(root):
                shutil.rmtree(incoming, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.rmdir(incoming)
            if lock.measuring():  # left to finish by itself
                lock.write(dict(lock.content, owner=None, expires=0))
            else:
                lock.write({})
    return {}


# --- the store ------------------------------------------------------------------------------------


def op_missing(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Which blobs the store lacks, or has damaged. Of what was half sent, ``parts`` tells how many
    bytes are there and their hash."""
    missing, parts = [], {}
    with exclusive(root) as lock:
        lock.require(request["token"])
        for item in request["blobs"]:
            sha256, size = checked("sha256", item["sha256"]), int(item["size"])
            path = root.blob(sha256)
            good = os.path.isfile(path) and os.path.getsize(path) == size
            if good and sha256_of(path) == sha256:
                continue
            missing.append(sha256)
            part = root.at("store", "incoming", request["token"], sha256)
            with contextlib.suppress(FileNotFoundError):
                state = os.lstat(part)
                if stat.S_ISREG(state.st_mode) and 0 < state.st_size <= size:
                    parts[sha256] = {"size": state.st_size, "sha256": sha256_of(part)}
        lock.renew()
    space = os.statvfs(root.path)
    free = space.f_bavail * space.f_frsize
    return {"missing": missing, "parts": parts, "free_bytes": free}


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
            replaces = os.path.lexists(final)
            os.rename(part, final)
            sync(os.path.dirname(final))
            if replaces:  # it was damaged, and so are the runtimes that share it
                _renew_runtimes(root, sha256)
            lock.renew()
            emit({"event": "stored", "sha256": sha256})
    return {}


def _renew_runtimes(root: Root, sha256: str) -> None:
    for folder in _entries(root.at("runtimes")):
        with contextlib.suppress(Refused):
            for name, item in read_json(os.path.join(folder, "runtime.json"))["files"].items():
                if item.get("sha256") == sha256:
                    place = os.path.join(folder, checked("name", name))
                    _place_file(root.blob(sha256), place, item)
                    sync(folder)


# --- runtimes, releases, the switch ---------------------------------------------------------------


def op_runtime(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Assembles a runtime's folder out of blobs. Where it is there, what is damaged in it is
    replaced, one file after the other, because something active may need it."""
    with exclusive(root) as lock:
        lock.require(request["token"])
        final = root.at("runtimes", checked("name", request["name"]))
        description = json.loads(request["description"])
        files = description["files"]
        blobs = {checked("name", n): root.existing_blob(f["sha256"]) for n, f in files.items()}
        archives = [(root.existing_blob(a["sha256"]), a) for a in description.get("archives", [])]
        if not os.path.isdir(final):
            with staged(final) as staging:
                for name, blob in blobs.items():
                    _place_file(blob, os.path.join(staging, name), files[name])
                for blob, item in archives:
                    unpack(blob, staging, item)
                    emit({"event": "unpacked", "sha256": item["sha256"]})
                _write_text(os.path.join(staging, "runtime.json"), request["description"])
                if archives:
                    compile_used(staging)
        elif list(_runtime_problems(root, final, Contents())):
            for name, blob in blobs.items():
                place = os.path.join(final, name)
                if not os.path.isfile(place) or sha256_of(place) != files[name]["sha256"]:
                    _place_file(blob, place, files[name])
            for blob, item in archives:
                unpack(blob, final, item, repair=True)
            write_durable(os.path.join(final, "runtime.json"), request["description"])
            if archives:
                for path in _compiled(final):
                    os.unlink(path)
                compile_used(final)
        lock.renew()
    return {"path": final}


def _place_file(blob: str, place: str, item: Dict[str, Any]) -> None:
    """Puts a blob at its place in a runtime, whatever is there."""
    if item["executable"]:
        os.chmod(blob, 0o555)
    temporary = temporary_name(place)
    try:
        # A hard link, not a symbolic one: the loader finds $ORIGIN by the real path.
        os.link(blob, temporary)
    except OSError:
        shutil.copy(blob, temporary)
        sync(temporary)
    os.replace(temporary, place)


def _write_text(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def members(archive: Any, item: Dict[str, Any]) -> List[Any]:
    """The files of an archive that a runtime takes: within bounds, and each a plain one that stays
    in its folder."""
    kept = []
    for info in archive.infolist():
        if info.is_dir() or any(fnmatch.fnmatchcase(info.filename, p) for p in item["leave_out"]):
            continue
        checked("path", info.filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or info.flag_bits & 1:
            raise Refused("invalid", "%s is not a plain file" % info.filename)
        kept.append(info)
    if len(kept) > MAX_MEMBERS or sum(info.file_size for info in kept) > MAX_UNPACKED:
        raise Refused("invalid", "an archive of a runtime is larger than any runtime is")
    return kept


def unpack(path: str, folder: str, item: Dict[str, Any], *, repair: bool = False) -> None:
    """Unpacks what a runtime needs of an archive. Nothing that is there is replaced, or, to
    ``repair``, only what is damaged."""
    import zipfile  # takes longer to load than most requests

    try:
        with zipfile.ZipFile(path) as archive:
            kept = members(archive, item)
            if repair:
                contents = Contents()
                kept = [info for info in kept if _member_problem(folder, info, contents)]
            needed = sum(info.file_size for info in kept) + RESERVE_BYTES
            space = os.statvfs(folder)
            if needed > space.f_bavail * space.f_frsize:
                raise Refused("space", "there is no room to unpack a runtime")
            for info in kept:
                target = os.path.join(folder, info.filename)
                os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
                place = temporary_name(target) if repair else target
                # The source gives file_size bytes that have the archive's CRC, or an error.
                with open(place, "xb") as sink, archive.open(info) as source:
                    shutil.copyfileobj(source, sink, CHUNK)
                if repair:
                    sync(place)
                    os.replace(place, target)
                    sync(os.path.dirname(target))
    except FileExistsError as error:
        raise Refused("invalid", "two parts of a runtime hold %s" % error.filename) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise Refused("damaged", "%s cannot be unpacked: %s" % (path, error)) from None


def _member_problem(folder: str, info: Any, contents: Contents) -> str:
    """What is wrong with an unpacked file; empty for nothing."""
    file = os.path.join(folder, info.filename)
    if not os.path.isfile(file):
        return "%s is missing" % file
    if contents.are(file, info.CRC, crc_of):
        return ""
    return "%s is damaged: it is not what was unpacked" % file


def _compiled(folder: str) -> Iterator[str]:
    return glob.iglob(os.path.join(glob.escape(folder), "**", "*.pyc"), recursive=True)


def compile_used(folder: str) -> None:
    """Keeps the compiled form of the modules that running needs: compiling them anew in every
    process would take longer than loading. What goes wrong here shows when the runtime is used."""
    command = [part for part in runtime_command(folder) if part != "-B"]
    with contextlib.suppress(OSError):
        run_bounded([*command, "--selftest"], folder, FIRST_RUN_S)
    compiled = {os.path.relpath(path, folder): sha256_of(path) for path in _compiled(folder)}
    write_durable(os.path.join(folder, "compiled.json"), json.dumps(compiled))


def _runtime_problems(root: Root, path: str, contents: Contents) -> Iterator[str]:
    file = os.path.join(path, "runtime.json")
    try:
        description = read_json(file)
        # The folder's name holds the first digits of this file's hash.
        if "+%s-" % sha256_of(file)[:8] not in os.path.basename(path):
            raise Refused("damaged", "%s is damaged" % file)
    except Refused as refused:
        yield "%s: it does not have the content that its folder is named by" % refused
        return
    expected = {n: f.get("sha256") for n, f in description.get("files", {}).items()}
    archives = description.get("archives", [])
    if archives:
        try:
            expected.update(read_json(os.path.join(path, "compiled.json")))
        except Refused as refused:
            yield str(refused)
    for name, sha256 in expected.items():
        file = os.path.join(path, name)
        if not os.path.isfile(file):
            yield "%s is missing" % file
        elif not contents.are(file, sha256):
            yield "%s is damaged: its content does not have its hash" % file
    for item in archives:
        yield from _archive_problems(root.existing_blob(item["sha256"]), path, item, contents)


def _archive_problems(
    blob: str, folder: str, item: Dict[str, Any], contents: Contents
) -> Iterator[str]:
    """Compares what was unpacked with the archive, which has the hash that it was fetched with."""
    import zipfile

    if not contents.are(blob, item["sha256"]):
        yield "%s is damaged: its content does not have its hash" % blob
        return
    with zipfile.ZipFile(blob) as archive:
        for info in members(archive, item):
            problem = _member_problem(folder, info, contents)
            if problem:
                yield problem


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


def _own_hash(document: Dict[str, Any]) -> str:
    rest = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _record(activation: str) -> Dict[str, Any]:
    """An activation's ``active.json``, as apps on the device read it."""
    path = os.path.join(activation, "active.json")
    document = read_json(path)
    if document.get("sha256") != _own_hash(document):
        raise Refused("damaged", "%s is damaged: its content does not have its hash" % path)
    return document


def _active(activation: str) -> Dict[str, Any]:
    """What an activation activates, and what it came after."""
    document = _record(activation)
    before = _previous(activation)
    document["previous"] = os.path.basename(os.path.realpath(os.path.join(before, "release"))) if (
        before) else None  # fmt: skip
    document["activation"] = os.path.basename(activation)
    return document


def _last_sound(root: Root, model: str) -> Optional[str]:
    """The activation that a new one comes after: the current one, or the one before it where the
    current one is damaged."""
    with contextlib.suppress(Refused, OSError):
        current = _current(root, model)
        for activation in (current, current and _previous(current)):
            if activation:
                with contextlib.suppress(Refused):
                    _record(activation)
                    return activation
    return None


def _switch(
    root: Root, model: str, active: Dict[str, Any], before: Optional[str]
) -> Dict[str, Any]:
    """Writes a new activation, which comes after ``before``, and turns ``current`` to it by one
    rename."""
    release = root.release(model, active["release"])
    runtime = root.runtime(active["runtime_dir"])
    artifact = os.path.join(release, checked("path", active["path"]))
    if not os.path.isfile(artifact):
        raise Refused("incomplete", "%s has no %s" % (release, active["path"]))
    folder = make_folder(root.at("activations", checked("name", model)))
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
    document["sha256"] = _own_hash(document)
    with staged(final) as staging:
        os.symlink(os.path.relpath(release, final), os.path.join(staging, "release"))
        if before:
            os.symlink(os.path.relpath(before, final), os.path.join(staging, "previous"))
        text = json.dumps(document, indent=2, sort_keys=True)
        _write_text(os.path.join(staging, "active.json"), text)
    make_folder(root.at("current"))
    link_durable("../activations/%s/%d" % (model, number), root.at("current", model))
    return _active(final)


_CHOICE = ("release", "artifact_id", "path", "runtime", "runtime_dir", "threads")


def op_activate(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Activates a release; the same choice again changes nothing, so that ``previous`` stays."""
    with exclusive(root) as lock:
        lock.require(request["token"])
        wanted = {key: request["active"][key] for key in _CHOICE}
        before = _last_sound(root, checked("name", request["model"]))
        if before and before == os.path.realpath(root.at("current", request["model"])):
            active = _active(before)
            if {key: active.get(key) for key in _CHOICE} == wanted:
                return {"active": active, "changed": False}
        return {"active": _switch(root, request["model"], wanted, before), "changed": True}


def op_rollback(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Activates what was active before, if all that it needs is sound; a second rollback therefore
    flips back."""
    with exclusive(root) as lock:
        lock.require(request["token"])
        current = _current(root, request["model"])
        if current is None:
            raise Refused("nothing", "nothing is active for %s" % request["model"])
        before = _previous(current)
        if before is None:
            raise Refused("nothing", "%s was never replaced: no previous one" % request["model"])
        damage = _damage(root, before, Contents())
        if damage:
            more = " (and %d more)" % (len(damage) - 1) if len(damage) > 1 else ""
            raise Refused("damaged", "what was active before is damaged, so nothing was changed: "
                          "%s%s" % (damage[0], more))  # fmt: skip
        wanted = {key: _record(before)[key] for key in _CHOICE}
        after = _last_sound(root, request["model"])
        return {"active": _switch(root, request["model"], wanted, after), "changed": True}


def _models(root: Root) -> List[str]:
    try:
        names = os.listdir(root.at("current"))
    except FileNotFoundError:
        return []
    return sorted(name for name in names if re.fullmatch(PATTERNS["name"], name))


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


def _needs(root: Root, activation: str) -> Tuple[str, str, Set[str]]:
    """Release, runtime and stored files of an activation."""
    release = os.path.realpath(os.path.join(activation, "release"))
    runtime = root.runtime(_active(activation)["runtime_dir"])
    linked = {root.blob(sha256) for _, sha256 in _links(release)}
    return release, runtime, linked | _parts(root, runtime)


def _parts(root: Root, runtime: str) -> Set[str]:
    """The stored files that a runtime is made of."""
    description = read_json(os.path.join(runtime, "runtime.json"))
    parts = [*description["files"].values(), *description.get("archives", [])]
    return {root.blob(part["sha256"]) for part in parts}


def op_status(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """What is active, of all models or one ``model``, and what is wrong with it. ``verify`` reads
    all that it needs and, of all models, what else is stored: what is wrong there is ``unused``.

    Nobody has to wait while it reads. What it then finds wrong may only have been on its way: that
    is looked at again while nothing changes, and without reading.
    """
    contents = Contents() if request.get("verify") else None
    while True:
        found = _look(root, request.get("model"), contents)
        if not found["problems"] and not found["unused"]:
            return found
        try:
            with exclusive(root, LONGEST_STEP_S):
                if contents:
                    contents.closed, contents.skipped = True, False
                found = _look(root, request.get("model"), contents)
        except OSError as error:
            if error.errno != errno.EROFS:  # nothing changes where nothing can be written
                raise
        if not contents or not contents.skipped:
            return found
        contents.closed = False


def _look(root: Root, only: Optional[str], contents: Optional[Contents]) -> Dict[str, Any]:
    activations, problems = [], []  # type: List[Dict[str, Any]], List[str]
    used: Set[str] = set()
    for model in _models(root):
        if only not in (None, model):
            continue
        try:
            needed = _needed(root, model)
            activations += [_active(activation) for activation in needed[:1]]
        except (Refused, OSError) as error:
            problems.append("%s: %s" % (model, error))
            continue
        for activation in needed:
            problems += _damage(root, activation, contents)
            with contextlib.suppress(Refused, OSError, KeyError):
                _, runtime, blobs = _needs(root, activation)
                used |= {runtime, *blobs}
    unused = _unused_damage(root, used, contents) if contents and only is None else []
    # What a release shares with the one before it is damaged in both.
    problems = list(dict.fromkeys(problems))
    return {"activations": activations, "problems": problems, "unused": unused}


def _unused_damage(root: Root, used: Set[str], contents: Contents) -> List[str]:
    """What is wrong with runtimes and stored files that nothing in ``used`` is."""
    found: List[str] = []
    for runtime in _entries(root.at("runtimes")):
        if runtime in used or not re.fullmatch(PATTERNS["name"], os.path.basename(runtime)):
            continue
        try:
            found += _runtime_problems(root, runtime, contents)
            used = used | _parts(root, runtime)
        except (Refused, OSError, KeyError) as error:
            found.append(str(error))
    for folder in sorted(_entries(root.at("store", "sha256"))):
        for path in sorted(set(_entries(folder)) - used):
            try:
                if not contents.are(path, os.path.basename(path)):
                    found.append("%s is damaged: its content does not have its hash" % path)
            except (Refused, OSError) as error:
                found.append(str(error))
    return found


def _damage(root: Root, activation: str, contents: Optional[Contents]) -> List[str]:
    """What is wrong with an activation; without ``contents``, as far as can be seen unread."""
    found: List[str] = []
    try:
        found += _activation_problems(root, activation, contents)
    except (Refused, OSError, KeyError) as error:
        found.append("%s: %s" % (activation, error))
    return found


def _activation_problems(
    root: Root, activation: str, contents: Optional[Contents]
) -> Iterator[str]:
    release = os.path.realpath(os.path.join(activation, "release"))
    active = _active(activation)
    manifest = os.path.basename(os.path.realpath(os.path.join(release, "manifest.json")))
    if manifest[:16] != os.path.basename(release):
        yield "%s: the manifest is not that of this release" % release
    if not os.path.lexists(os.path.join(release, checked("path", active["path"]))):
        yield "%s has no %s" % (release, active["path"])
    for path, sha256 in _links(release):
        if not os.path.isfile(path):
            yield "%s is missing from the store" % path
        elif contents and not contents.are(os.path.realpath(path), sha256):
            yield "%s is damaged: its content does not have its hash" % path
    runtime = root.runtime(active["runtime_dir"])
    if contents:
        yield from _runtime_problems(root, runtime, contents)


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
                release, runtime, needed = _needs(root, activation)
                activations.add(activation)
                releases.add(release)
                runtimes.add(runtime)
                blobs |= needed
        jobs = {path for path in _entries(root.at("spool")) if _is_fresh(path)}
        # From the top down: what a cut leaves behind never refers to what is gone.
        removed = _sweep(root.at("activations"), 2, activations)
        removed += _sweep(root.at("releases"), 2, releases)
        removed += _sweep(root.at("runtimes"), 1, runtimes)
        removed += _sweep(root.at("store", "sha256"), 2, blobs)
        removed += _sweep(root.at("spool"), 1, jobs)
        removed += _sweep(root.at("store", "incoming"), 1, set())
        removed += _sweep(root.at("current"), 1,
                          {root.at("current", model) for model in _models(root)})  # fmt: skip
        removed += _sweep(root.at("agent"), 1, {os.path.realpath(__file__)})
    return {"removed_bytes": removed}


def _entries(folder: str) -> List[str]:
    return [os.path.join(folder, n) for n in os.listdir(folder)] if os.path.isdir(folder) else []


def _sweep(folder: str, depth: int, keep: Set[str]) -> int:
    """Removes what lies ``depth`` levels down and is not to be kept; returns the bytes freed."""
    removed = 0
    for path in _entries(folder):
        # A link is never followed: what it leads to is not edgekit's.
        if depth > 1 and not os.path.islink(path):
            removed += _sweep(path, depth - 1, keep)
        elif path not in keep:
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
            if state == "running":
                lock.write(dict(lock.content, worker=_job_worker(folder)))
            return {"state": state, "adopted": True}
        spool = root.at("spool")
        _sweep(spool, 1, {path for path in _entries(spool) if _is_fresh(path)})
        for index, step in enumerate(request["steps"]):
            step_command(root, folder, index, step)  # what is wrong is said before anything runs
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        document = {"steps": request["steps"], "gate": request.get("gate"),
                    "who": lock.content.get("who")}  # fmt: skip
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


def _is_fresh(path: str, seconds: float = JOB_KEPT_S) -> bool:
    try:
        return abs(time.time() - os.lstat(path).st_mtime) < seconds
    except FileNotFoundError:
        return False


def op_jobs(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """The jobs that run or whose results wait here, and how far each one is."""
    jobs = []
    for folder in _entries(root.at("spool"))[:100]:
        with contextlib.suppress(Refused, OSError):
            document = read_json(os.path.join(folder, "request.json"))
            done = 0
            events = os.path.join(folder, "events.jsonl")
            with contextlib.suppress(FileNotFoundError), open(events, "rb") as file:
                done = sum(line.startswith(b'{"event": "step"') for line in file)
            jobs.append({"job": os.path.basename(folder), "state": job_state(folder), "done": done,
                         "steps": len(document["steps"]), "who": document.get("who")})  # fmt: skip
    return {"jobs": jobs}


def op_follow(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Passes on a job's events from byte ``offset``, for at most ``wait_s``."""
    folder, offset = root.job(request["job"]), int(request["offset"])
    # To follow is a sign of life of the lock's owner; others only read.
    with contextlib.suppress(Refused), exclusive(root) as lock:
        lock.require(request["token"])
    deadline, pause = time.monotonic() + min(float(request["wait_s"]), 600.0), 0.02
    while True:
        state = job_state(folder)  # before reading, so that an end is never seen before its events
        data = b""
        with contextlib.suppress(FileNotFoundError):
            with open(os.path.join(folder, "events.jsonl"), "rb") as file:
                file.seek(offset)
                data = file.read(4 * MAX_REPORT)  # more than one event can have
            for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
                offset += len(line)
                emit({"event": "line", "offset": offset, "line": json.loads(line)})
            if len(data) == 4 * MAX_REPORT:
                return {"state": "running", "offset": offset}
        if state == "dead" and _is_full(root):
            raise Refused("space", "the device's disk is full")
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
    # Also written by who started it, unless that was killed just now.
    write_durable(os.path.join(folder, "worker.json"), json.dumps(identity(os.getpid())))
    failed: Set[str] = set()
    with open(os.path.join(folder, "events.jsonl"), "ab", buffering=0) as events:
        for index, step in enumerate(request["steps"]):
            if step["key"] in failed:
                continue
            result = _run_step(root, folder, index, step, request.get("gate") or {})
            if result["returncode"] != 0 and _is_full(root):
                raise SystemExit("the disk is full")  # that says nothing about the step
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
    # What is no text grows sixfold as JSON.
    endless = endless or len(json.dumps(out)) > 2 * MAX_REPORT
    if endless:
        out, err = "", "the runner wrote more than %d bytes to its stdout" % MAX_REPORT
    code = 70 if endless else process.returncode
    return {"returncode": code, "timed_out": timed_out, "stdout": out, "stderr": err,
            "oom_kill": _oom_kills() > oom_before}  # fmt: skip


def op_selftest(root: Root, request: Request, emit: Emit) -> Dict[str, Any]:
    """Runs a runtime's own small test; tells how it ended, which is the host's to judge."""
    folder = root.runtime(request["runtime"])
    command = [*runtime_command(folder), "--selftest"]
    with exclusive(root) as lock:
        lock.require(request["token"])
        lock.renew(float(request["limit_s"]) + LEASE_S)
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


def interpreter() -> Dict[str, str]:
    """Tells this Python's installation apart from all others, on this machine and elsewhere."""
    place = os.stat(os.path.dirname(sys.executable))
    return {"boot": boot_id(), "folder": "%d:%d" % (place.st_dev, place.st_ino)}


def facts(root: Root) -> Dict[str, Any]:
    """What the device says about itself, unparsed."""
    space = os.statvfs(root.path)
    uname = os.uname()
    libc = ""
    with contextlib.suppress(OSError, ValueError):
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    if not libc and glob.glob("/lib/ld-musl-*"):
        libc = "musl"
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
        "interpreter": interpreter(),
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
        kinds = {errno.ENOSPC: "space", errno.EDQUOT: "space", errno.EROFS: "readonly"}
        kind = kinds.get(error.errno or 0, "os")
        emit({"event": "error", "kind": kind, "message": str(error)})
    except (KeyError, TypeError, ValueError) as error:
        message = "malformed request or state: %s: %s" % (type(error).__name__, error)
        emit({"event": "error", "kind": "invalid", "message": message})
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
