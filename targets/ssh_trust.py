"""Whether an SSH server is the one it was before: known_hosts read, judged by, and added to.

The file's format is sshd(8)'s: comma-separated patterns (with ``*``, ``?`` and ``!``) or one hashed
name, the key's type, the key; ``@revoked`` in front forbids a key. ``@cert-authority`` lines are
passed over: a certificate of a host is judged by its key.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fnmatch
import hashlib
import hmac
import os
import secrets
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import DeviceError
from edgekit.targets.ssh_config import Hop

#: Key types of known_hosts -> signature algorithms to ask a server for.
ALGORITHMS = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}


class HostKeyRefused(DeviceError):
    """A server's key is unknown, changed or revoked. ``fingerprint`` is the one that it showed."""

    def __init__(self, message: str, *, fingerprint: str, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.fingerprint = fingerprint


class UnknownHost(HostKeyRefused):
    """Nothing is known about this server yet."""


@dataclass(frozen=True, slots=True)
class HostKey:
    """A public key: its type, such as ``ssh-ed25519``, and its bytes on the wire."""

    kind: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As ``ssh-keygen -l`` shows it: ``SHA256:`` and unpadded base64."""
        digest = base64.b64encode(hashlib.sha256(self.blob).digest())
        return "SHA256:" + digest.decode().rstrip("=")


@dataclass(frozen=True, slots=True)
class KnownHost:
    """One line of known_hosts; ``place`` is file and line number."""

    names: tuple[str, ...]
    key: HostKey
    revoked: bool
    place: str


def parse_known_hosts(text: str, file: str) -> list[KnownHost]:
    """The lines of a known_hosts file; those that are none are passed over, as OpenSSH does."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        marker = words.pop(0) if words and words[0].startswith("@") else ""
        if len(words) < 3 or words[0].startswith("#") or marker not in ("", "@revoked"):
            continue
        names, kind, encoded = words[:3]
        with contextlib.suppress(binascii.Error, ValueError):
            key = HostKey(kind, base64.b64decode(encoded, validate=True))
            found.append(
                KnownHost(tuple(names.split(",")), key, bool(marker), f"{file}, line {number}")
            )
    return found


def read_known_hosts(files: Iterable[Path]) -> list[KnownHost]:
    """All entries of several files; a file that is not there has none.

    Raises:
        DeviceError: one is there and cannot be read; its host keys would be missed.
    """
    found: list[KnownHost] = []
    for file in files:
        try:
            found += parse_known_hosts(file.read_text("utf-8", "replace"), str(file))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DeviceError(f"{file} cannot be read: {error.strerror}.") from error
    return found


def speaks_of(entry: KnownHost, name: str) -> bool:
    """Whether a line is about the server that known_hosts calls ``name``."""
    found = False
    for pattern in entry.names:
        if pattern.startswith("|1|"):
            found = found or _hashed_match(pattern, name)
        elif pattern.startswith("!"):
            if _match(pattern[1:], name):
                return False
        else:
            found = found or _match(pattern, name)
    return found


def _match(pattern: str, name: str) -> bool:
    # Brackets are part of names here ([host]:port), not sets of characters.
    return fnmatch.fnmatchcase(name, pattern.lower().replace("[", "[[]"))


def _hashed_match(pattern: str, name: str) -> bool:
    with contextlib.suppress(binascii.Error, ValueError):
        _, _, salt, digest = pattern.split("|")
        found = hmac.new(base64.b64decode(salt), name.encode(), "sha1").digest()
        return hmac.compare_digest(found, base64.b64decode(digest))
    return False


def known_types(entries: Sequence[KnownHost], name: str) -> list[str]:
    """The algorithms to ask a server for first, so that it shows the key that is known."""
    kinds = [entry.key.kind for entry in entries if speaks_of(entry, name) and not entry.revoked]
    return [a for kind in dict.fromkeys(kinds) for a in ALGORITHMS.get(kind, (kind,))]


def judge(entries: Sequence[KnownHost], hop: Hop, key: HostKey, *, trust: str) -> None:
    """Returns where the key is known for this server.

    Args:
        entries: what is known.
        hop: the server.
        key: what it showed.
        trust: the command that trusts it, for the message.

    Raises:
        UnknownHost: no key is known.
        HostKeyRefused: another one is known, or this one is revoked.
    """
    about = [entry for entry in entries if speaks_of(entry, hop.known_as)]
    if revoked := [e for e in about if e.revoked and e.key.blob == key.blob]:
        raise HostKeyRefused(
            f"The host key of {hop} is revoked ({revoked[0].place}).",
            fingerprint=key.fingerprint,
            remedy="Do not connect to it; give the device a new host key.",
        )
    known = [entry for entry in about if not entry.revoked]
    if any(entry.key == key for entry in known):
        return
    if known:
        same = [entry for entry in known if entry.key.kind == key.kind] or known
        raise HostKeyRefused(
            f"The host key of {hop} has changed: it shows {key.fingerprint} ({key.kind}), and "
            f"{same[0].key.fingerprint} ({same[0].key.kind}) is known ({same[0].place}). Either "
            "its system was installed anew, or somebody else answers in its place.",
            fingerprint=key.fingerprint,
            remedy="Only if you know why: "
            f"ssh-keygen -f {shlex.quote(same[0].place.rpartition(',')[0])} "
            f"-R {shlex.quote(hop.known_as)}, and then {trust}",
        )
    raise UnknownHost(
        f"The host key of {hop} is not known: it shows {key.fingerprint} ({key.kind}).",
        fingerprint=key.fingerprint,
        remedy="Compare it with what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` says on "
        f"the device; then: {trust}",
    )


def remember(hop: Hop, key: HostKey) -> Path:
    """Adds a server's key to the first known_hosts file; returns the file.

    Raises:
        DeviceError: the file cannot be written.
    """
    if not hop.known_hosts:
        raise DeviceError(
            f"{hop}: the ssh configuration names no file for known host keys.",
            remedy="Remove UserKnownHostsFile none.",
        )
    file, name = hop.known_hosts[0], hop.known_as
    if hop.hash_names:
        salt = secrets.token_bytes(20)
        digest = hmac.new(salt, name.encode(), "sha1").digest()
        name = f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
    line = f"{name} {key.kind} {base64.b64encode(key.blob).decode()}\n"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        with open(descriptor, "r+b", buffering=0) as known:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = "\n" + line
            known.write(line.encode())
    except OSError as error:
        raise DeviceError(f"{file} cannot be written: {error.strerror}.") from error
    return file
