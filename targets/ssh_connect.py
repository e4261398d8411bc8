"""Opens connections to SSH servers: through jump hosts, with checked host keys, a few at a time.

Everything here ends within a time limit. A link that dies later is noticed by the kernel
(TCP_USER_TIMEOUT), which keep-alive packets give something to notice by.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekit.errors import DeviceError, LinkLost
from edgekit.targets.runtimes import cache_dir
from edgekit.targets.ssh_config import Hop
from edgekit.targets.ssh_keys import KeyRing
from edgekit.targets.ssh_trust import HostKey, judge, known_types, read_known_hosts

if TYPE_CHECKING:
    import paramiko

#: sshd's MaxStartups drops connections at random from the tenth unfinished one on.
MAX_OPENING = 8
OPENING_WAIT_S = 120.0
#: A server that drops a connection during the handshake is asked again so many times.
DROPPED_RETRIES = 6
MAX_BACK_OFF_S = 5.0
#: paramiko logs every lost link as an error with a traceback; it is an exception here.
_WIRE = logging.getLogger("edgekit.ssh.wire")
_WIRE.addFilter(lambda record: logging.getLogger().isEnabledFor(logging.DEBUG))


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: to reach a server and be greeted; of silence after which a link counts as dead; that
    a link which was there once may be away, as during a reboot."""

    connect_s: float = 10.0
    link_s: float = 15.0
    reconnect_s: float = 60.0


class _Dropped(Exception):
    """A server hung up before the login, as a busy one does."""


class _Unresolved(Exception):
    """A name does not resolve, for the time being or at all."""


class Connection:
    """A logged-in connection to the last of several hops."""

    def __init__(self, transports: Sequence[paramiko.Transport]) -> None:
        self._transports = transports
        self.transport = transports[-1]

    @property
    def alive(self) -> bool:
        return all(transport.is_active() for transport in self._transports)

    def close(self) -> None:
        for transport in reversed(self._transports):
            with contextlib.suppress(Exception):
                transport.close()


#: Called with the entry's hop and the key that its server shows; raises where that is not trusted.
Verify = Callable[[Hop, HostKey], None]


def checked_by_known_hosts(trust: str) -> Verify:
    """The rule of every connection; ``trust`` is the command to name to those who are refused."""

    def verify(hop: Hop, key: HostKey) -> None:
        judge(read_known_hosts(hop.known_hosts), hop, key, trust=trust)

    return verify


def connect(
    hops: Sequence[Hop],
    keys: KeyRing,
    limits: Limits,
    verify: Verify,
    *,
    patience_s: float | None = None,
    login: bool = True,
) -> Connection:
    """Connects to the last hop through the others.

    Args:
        hops: the way.
        keys: what to log in with.
        limits: time-outs.
        verify: judges each server's host key.
        patience_s: for servers that were there before: how long to go on trying where the network
            refuses, or where a name does not resolve, which devices answer for themselves in many
            networks (mDNS). A server that hangs up is tried again in any case.
        login: whether to log in to the last hop; to the others in any case.

    Raises:
        LinkLost: a server cannot be reached or does not answer in time; a name that was known
            before does not resolve.
        HostKeyRefused: a server's key is not trusted.
        DeviceError: a name is unknown, or no key lets us in.
    """
    deadline = time.monotonic() + (patience_s or 0.0)
    dropped = 0
    attempt = 0
    while True:
        try:
            return _connect_once(hops, keys, limits, verify, login)
        except _Dropped as error:
            dropped += 1
            if dropped > DROPPED_RETRIES:
                raise LinkLost(
                    str(error),
                    remedy="It may be busy, or refuse this machine; look at its sshd's log.",
                ) from error
        except _Unresolved as error:
            if time.monotonic() >= deadline:
                raise (DeviceError if patience_s is None else LinkLost)(
                    str(error),
                    remedy="Is the device on, and in this network? Name its address: "
                    "edgekit targets add NAME USER@ADDRESS, or a Host in ~/.ssh/config.",
                ) from error
        except LinkLost:
            if time.monotonic() >= deadline:
                raise
        attempt += 1
        time.sleep(min(0.25 * 2**attempt, MAX_BACK_OFF_S) * random.uniform(0.5, 1.0))


def _connect_once(
    hops: Sequence[Hop], keys: KeyRing, limits: Limits, verify: Verify, login: bool
) -> Connection:
    transports: list[paramiko.Transport] = []
    try:
        for hop in hops:
            with opening(f"{hop.host}:{hop.port}"):
                wire = _channel_through(transports[-1], hop, limits) if transports else None
                transport = _greet(wire or _tcp(hop, limits), hop, limits, verify)
                transports.append(transport)
                if login or hop is not hops[-1]:
                    _log_in(transport, hop, keys)
            transport.set_keepalive(max(1, int(limits.link_s / 3)))
        return Connection(transports)
    except BaseException:
        if transports:
            Connection(transports).close()
        raise


def _tcp(hop: Hop, limits: Limits) -> socket.socket:
    try:
        wire = socket.create_connection((hop.host, hop.port), timeout=limits.connect_s)
    except socket.gaierror as error:
        raise _Unresolved(f"There is no host {hop.host!r}: {error.strerror}.") from error
    except TimeoutError as error:
        raise LinkLost(
            f"{hop.host}:{hop.port} did not answer within {limits.connect_s:g} s.",
            remedy="Is the device on, and in this network?",
        ) from error
    except OSError as error:
        raise LinkLost(
            f"{hop.host}:{hop.port} cannot be reached: {error.strerror or error}.",
            remedy="Is the device on, and its SSH server enabled?",
        ) from error
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * limits.link_s))
    return wire


def _channel_through(jump: paramiko.Transport, hop: Hop, limits: Limits) -> Any:
    import paramiko

    try:
        return jump.open_channel(
            "direct-tcpip", (hop.host, hop.port), ("127.0.0.1", 0), timeout=limits.connect_s
        )
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise LinkLost(
            f"The jump host cannot reach {hop.host}:{hop.port}: {error or 'it hung up'}.",
            remedy="Is the device on, and does the jump host allow forwarding?",
        ) from error


def _greet(wire: Any, hop: Hop, limits: Limits, verify: Verify) -> paramiko.Transport:
    """The handshake, up to a host key that is trusted."""
    import paramiko

    started = time.monotonic()
    transport = paramiko.Transport(wire)
    try:
        transport.set_log_channel(_WIRE.name)
        transport.banner_timeout = transport.handshake_timeout = limits.connect_s
        transport.channel_timeout = limits.connect_s
        options = transport.get_security_options()
        options.ciphers = _fastest_first(options.ciphers)
        known = known_types(read_known_hosts(hop.known_hosts), hop.known_as)
        first = [kind for kind in known if kind in options.key_types]
        options.key_types = first + [kind for kind in options.key_types if kind not in first]
        try:
            transport.start_client(timeout=limits.connect_s)
            shown = transport.get_remote_server_key()
        except (paramiko.SSHException, EOFError, OSError) as error:
            if time.monotonic() - started >= limits.connect_s:
                raise LinkLost(
                    f"{hop.host}:{hop.port} did not greet within {limits.connect_s:g} s.",
                    remedy="Is that an SSH server, and is the device overloaded?",
                ) from error
            raise _Dropped(
                f"{hop.host}:{hop.port} hung up during the handshake: {words(error)}."
            ) from error
        verify(hop, HostKey(shown.get_name(), shown.asbytes()))
    except BaseException:
        transport.close()
        wire.close()
        raise
    return transport


def _fastest_first(ciphers: Sequence[str]) -> list[str]:
    """GCM needs no HMAC beside it: a third less processor time on both sides than CTR."""
    return sorted(ciphers, key=lambda name: "gcm" not in name)


def _log_in(transport: paramiko.Transport, hop: Hop, keys: KeyRing) -> None:
    import paramiko

    try:
        keys.authenticate(transport, hop)
    except (paramiko.SSHException, EOFError, OSError) as error:
        raise _Dropped(
            f"{hop.host}:{hop.port} hung up during the login: {words(error)}."
        ) from error


def words(error: BaseException) -> str:
    """What an exception says; a connection's end often says nothing."""
    return str(error).rstrip(".") or "the connection was closed"


@contextlib.contextmanager
def opening(server: str) -> Iterator[None]:
    """Holds one of MAX_OPENING places for connections being opened to a server.

    The places are locks on files of the cache folder, so that they count for all processes and
    threads of this user, and are given back by whoever dies.
    """
    name = hashlib.sha256(server.encode()).hexdigest()[:16]
    deadline = time.monotonic() + OPENING_WAIT_S
    descriptor = -1
    try:
        folder = cache_dir() / "ssh"
        folder.mkdir(parents=True, exist_ok=True)
        while descriptor < 0:
            for place in random.sample(range(MAX_OPENING), MAX_OPENING):
                descriptor = _try_lock(str(folder / f"{name}.{place}"))
                if descriptor >= 0:
                    break
            else:
                if time.monotonic() > deadline:
                    raise LinkLost(
                        f"{MAX_OPENING} connections to {server} have been opening for "
                        f"{OPENING_WAIT_S:g} s.",
                        remedy="Try again when fewer programs deploy to it.",
                    )
                time.sleep(random.uniform(0.02, 0.08))
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _try_lock(path: str) -> int:
    """A descriptor that holds the file's lock; -1 where somebody else holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor
