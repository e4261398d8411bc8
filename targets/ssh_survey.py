"""What ``edgekit targets`` does with SSH targets: trusts them and describes the way to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.resolve import spelled
from edgekit.targets.ssh import limits_of
from edgekit.targets.ssh_config import Hop, route
from edgekit.targets.ssh_connect import connect
from edgekit.targets.ssh_keys import KeyRing
from edgekit.targets.ssh_trust import (
    HostKey,
    HostKeyRefused,
    UnknownHost,
    judge,
    read_known_hosts,
    remember,
    speaks_of,
)
from edgekit.types import Target


@dataclass(frozen=True, slots=True)
class Trusted:
    """A server whose key is known now; ``file`` is None where it was before."""

    server: str
    kind: str
    fingerprint: str
    file: Path | None


def trust(target: Target, fingerprint: str | None = None) -> list[Trusted]:
    """Asks each server on the way to a target for its host key, and remembers those not known yet.

    Args:
        target: an SSH target.
        fingerprint: accept no other unknown key than this (``SHA256:...``).

    Raises:
        HostKeyRefused: a server's key has changed, is revoked, or is not the expected one.
        LinkLost, DeviceError: a server cannot be reached, or a jump host lets nobody in.
    """
    done: dict[Hop, Trusted] = {}
    command = f"edgekit targets trust {spelled(target)}"

    def verify(hop: Hop, key: HostKey) -> None:
        file = None
        try:
            judge(read_known_hosts(hop.known_hosts), hop, key, trust=command)
        except UnknownHost as unknown:
            if fingerprint is not None and fingerprint != key.fingerprint:
                raise HostKeyRefused(
                    f"{hop} shows {key.fingerprint} ({key.kind}), not {fingerprint}.",
                    fingerprint=key.fingerprint,
                    remedy="Somebody else answers in its place, or the fingerprint is another "
                    "key's of it.",
                ) from unknown
            file = remember(hop, key)
        done[hop] = done.get(hop) or Trusted(str(hop), key.kind, key.fingerprint, file)

    keys = KeyRing()
    try:
        connect(route(target), keys, limits_of(target), verify, login=False).close()
    finally:
        keys.close()
    return list(done.values())


def describe(target: Target) -> list[Mapping[str, object]]:
    """The servers on the way to a target, and the fingerprints that are known of each."""
    return [
        {
            "host": hop.host,
            "port": hop.port,
            "user": hop.user,
            "known_keys": [
                f"{entry.key.fingerprint} ({entry.key.kind})"
                for entry in read_known_hosts(hop.known_hosts)
                if speaks_of(entry, hop.known_as) and not entry.revoked
            ],
        }
        for hop in route(target)
    ]
