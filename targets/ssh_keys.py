"""Proving who we are to an SSH server: the agent's keys, key files, passphrases from a terminal.

Nothing secret is stored or logged: an unlocked key lives in this process's memory, and no longer
than its transport.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import getpass
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import DeviceError
from edgekit.targets.ssh_config import Hop

if TYPE_CHECKING:
    import paramiko

AGENT_TIMEOUT_S = 60.0  # an agent may ask its user
PASSPHRASE_TRIES = 3
AUTH_TIMEOUT_S = 30.0


#: A key, and how messages name it.
Offer = tuple[str, Any]


class KeyRing:
    """The keys of one transport, each loaded once, so that a reconnect asks nothing again."""

    def __init__(self) -> None:
        self._unlocked: dict[Path, tuple[Offer, ...]] = {}
        self._agents: dict[str, Any] = {}

    def close(self) -> None:
        for agent in self._agents.values():
            with contextlib.suppress(Exception):
                agent._close()
        self._agents.clear()

    def authenticate(self, transport: paramiko.Transport, hop: Hop) -> None:
        """Logs in with the first key that the server takes.

        Raises:
            DeviceError: it takes none of them.
            EOFError, OSError, SSHException: the connection broke.
        """
        import paramiko

        transport.auth_timeout = AUTH_TIMEOUT_S
        tried: list[str] = []
        notes: list[str] = []
        for label, key in self._candidates(hop, notes):
            tried.append(label)
            try:
                further = transport.auth_publickey(hop.user, key)
            except paramiko.BadAuthenticationType as error:
                only = f"it takes only {', '.join(error.allowed_types)}"
                raise _refused(hop, tried, [only]) from error
            except paramiko.AuthenticationException:
                if not transport.is_active():
                    if len(tried) > 3:
                        raise _refused(hop, tried, ["it closed the connection"]) from None
                    raise EOFError from None
                continue
            if not further:
                return
            notes.append(f"beside {label} it wants {', '.join(further)}")
        raise _refused(hop, tried, notes)

    def _candidates(self, hop: Hop, notes: list[str]) -> Iterator[Offer]:
        """Named keys first, then the agent's others; what needs a passphrase comes last."""
        from paramiko import PasswordRequiredException

        held = {bytes(key.blob): key for key in self._agent_keys(hop, notes)}
        locked: list[Path] = []
        for path in hop.identities:
            public = _public_blob(path)
            if public is not None and public in held:
                key = held.pop(public)
                yield from _certified(path, type(key)(key.agent, key.blob, key.comment), notes)
                yield f"{path} (agent)", key
            elif path in self._unlocked:
                yield from self._unlocked[path]
            elif not path.is_file():
                if hop.chosen:
                    notes.append(f"{path} is not there")
            else:
                try:
                    offers = self._load(path, notes)
                except PasswordRequiredException:
                    locked.append(path)
                    continue
                yield from offers
        if not hop.identities_only:
            for key in held.values():
                yield f"{getattr(key, 'comment', '') or key.get_name()} (agent)", key
        for path in locked:
            yield from self._unlock(path, notes)

    def _load(
        self, path: Path, notes: list[str], passphrase: str | None = None
    ) -> tuple[Offer, ...]:
        """A key file's key, with its certificate and without; nothing where it is no key.
        PasswordRequiredException: it is locked."""
        import paramiko

        for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
            try:
                key = kind.from_private_key_file(str(path), passphrase)
            except paramiko.PasswordRequiredException:
                raise
            except OSError as error:
                notes.append(f"{path} cannot be read: {error.strerror}")
                return ()
            except (paramiko.SSHException, ValueError, IndexError):
                continue
            # As OpenSSH does: a server may not know the certificate's authority, but the key.
            self._unlocked[path] = (*_certified(path, copy.copy(key), notes), (str(path), key))
            return self._unlocked[path]
        notes.append(f"{path} is no private key of a known kind")
        return ()

    def _unlock(self, path: Path, notes: list[str]) -> tuple[Offer, ...]:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            notes.append(
                f"{path} needs a passphrase, which is only asked for on a terminal (ssh-add {path})"
            )
            return ()
        for _ in range(PASSPHRASE_TRIES):
            passphrase = getpass.getpass(f"Passphrase of {path}: ", stream=sys.stderr)
            if not passphrase:
                break
            if offers := self._load(path, [], passphrase):
                return offers
        notes.append(f"{path} was not unlocked")
        return ()

    def _agent_keys(self, hop: Hop, notes: list[str]) -> tuple[Any, ...]:
        if not hop.agent:
            return ()
        if hop.agent not in self._agents:
            from paramiko.agent import AgentSSH

            # paramiko.Agent knows only SSH_AUTH_SOCK, and waits for ever.
            agent, connection = AgentSSH(), socket.socket(socket.AF_UNIX)
            connection.settimeout(AGENT_TIMEOUT_S)
            try:
                connection.connect(hop.agent)
                agent._connect(connection)
            except Exception as error:  # a dead agent is no reason to fail: there may be key files
                connection.close()
                notes.append(f"the agent at {hop.agent} does not answer ({error})")
                return ()
            self._agents[hop.agent] = agent
        return tuple(map(_as_offered, self._agents[hop.agent].get_keys()))


def _as_offered(key: Any) -> Any:
    """An agent's key; a certificate as one, of which paramiko would offer the plain half."""
    from paramiko.pkey import PublicBlob

    if "-cert-" in key.get_name():
        key.public_blob = PublicBlob(key.get_name(), key.blob)
    return key


def _certified(path: Path, key: paramiko.PKey, notes: list[str]) -> tuple[Offer, ...]:
    """``key``, with the certificate beside its file; nothing where there is none. paramiko offers
    nothing but the certificate of a key that has one, so this must be another object of it."""
    file = path.with_name(path.name + "-cert.pub")
    if not file.is_file():
        return ()
    try:
        key.load_certificate(str(file))
    except OSError as error:
        notes.append(f"{file} cannot be read: {error.strerror}")
    except ValueError:
        notes.append(f"{file} is no certificate of {path}")
    else:
        return ((str(file), key),)
    return ()


def _public_blob(path: Path) -> bytes | None:
    """The public key beside a private key file, or in its place, as in ``IdentityFile x.pub``."""
    for file in (path.with_name(path.name + ".pub"), path):
        with contextlib.suppress(OSError, ValueError, IndexError):
            words = file.read_text(encoding="ascii").split()
            if words[0].startswith(("ssh-", "ecdsa-", "sk-")):
                return base64.b64decode(words[1], validate=True)
    return None


def _refused(hop: Hop, tried: list[str], notes: list[str]) -> DeviceError:
    offered = f"it refused {', '.join(tried)}" if tried else "there is no key to offer"
    words = "; ".join([offered, *notes])
    return DeviceError(
        f"{hop.host} does not let {hop.user} in: {words}.",
        remedy=f"Put a key there (ssh-copy-id {_copy_id(hop)}), or name another user or identity.",
    )


def _copy_id(hop: Hop) -> str:
    return (f"-p {hop.port} " if hop.port != 22 else "") + f"{hop.user}@{hop.host}"
