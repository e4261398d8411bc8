"""Where an SSH target is: its address and the user's ssh configuration, as a chain of hops.

Read are ``~/.ssh/config`` and ``/etc/ssh/ssh_config`` as OpenSSH reads them: Include, Host, Match,
the first value wins. Used are HostName, User, Port, IdentityFile, IdentitiesOnly, IdentityAgent,
ProxyJump, UserKnownHostsFile, GlobalKnownHostsFile, HostKeyAlias and HashKnownHosts. Host keys are
always checked, whatever StrictHostKeyChecking says.
"""

from __future__ import annotations

import fnmatch
import getpass
import glob
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.errors import DeviceError, UsageError
from edgekit.targets.profile import load_profile
from edgekit.types import Target

PORT = 22
SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
MAX_DEPTH = 16  # of Include, as in OpenSSH, and of jump hosts that need jump hosts
_ADDRESS = re.compile(
    r"(?:(?P<user>[^\s@:/]+)@)?(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s@:/\[\]-][^\s@:/\[\]]*)"
    r"(?::(?P<port>\d{1,5}))?"
)
_DIRECTIVE = re.compile(r"\s*(\w+)(?:\s*=\s*|\s+)(.*?)\s*")
_DEFAULT_KEYS = ("~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")


@dataclass(frozen=True, slots=True)
class Address:
    """``[ssh://][user@]host[:port]``; what is absent is empty or 0."""

    host: str
    user: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Hop:
    """One SSH server on the way to a device, the device last.

    Attributes:
        host: name or address to connect to.
        port: of its sshd.
        user: who to log in as.
        identities: private key files to try, in order.
        chosen: whether those were named, by the target or by the configuration; a key file that is
            not there is then worth a word.
        identities_only: offer no other keys of the agent.
        agent: the agent's socket; empty for none.
        known_as: the name in known_hosts: ``host``, ``[host]:port`` or an alias.
        known_hosts: files of known host keys; the first is the one that is added to.
        hash_names: whether names are hashed there.
    """

    host: str
    port: int
    user: str
    identities: tuple[Path, ...]
    chosen: bool
    identities_only: bool
    agent: str
    known_as: str
    known_hosts: tuple[Path, ...]
    hash_names: bool

    def __str__(self) -> str:
        return f"{self.user}@{self.host}" + (f":{self.port}" if self.port != PORT else "")


def parse_address(text: str) -> Address:
    """An address in any of its forms; IPv6 addresses stand in brackets.

    Raises:
        UsageError: it is none.
    """
    match = _ADDRESS.fullmatch(text.removeprefix("ssh://").removesuffix("/"))
    if match is None or int(match["port"] or PORT) not in range(1, 65536):
        raise UsageError(
            f"{text!r} is no address of an SSH server.",
            remedy="It is HOST, USER@HOST, USER@HOST:PORT or ssh://USER@HOST:PORT.",
        )
    return Address(match["host"].strip("[]"), match["user"] or "", int(match["port"] or 0))


def route(target: Target) -> tuple[Hop, ...]:
    """The servers on the way to a target: its jump hosts, then itself.

    ``target.options`` understood here: ``identity`` (a private key file), ``jump`` (as ProxyJump)
    and ``known_hosts`` (the one file of known host keys); all win over the configuration.
    An address that is the name of the target's profile means the ssh configuration's host of that
    name, else the profile's own host.

    Raises:
        UsageError: the address, an option or the configuration is wrong.
        DeviceError: a profile without a usual host name is not in the configuration.
    """
    address = parse_address(target.address or target.name)
    identity = target.options.get("identity", "")
    jump = target.options.get("jump")
    if target.profile and address == Address(target.profile):
        address = _host_of_profile(target.profile)
    hops = tuple(_hops(address, jump, identity, depth=0))
    if known_hosts := target.options.get("known_hosts"):
        own = replace(hops[-1], known_hosts=_files(known_hosts), hash_names=False)
        hops = (*hops[:-1], own)
    return hops


def _host_of_profile(profile: str) -> Address:
    if _config_for(profile).names(profile):
        return Address(profile)
    if usual := load_profile(profile).host:
        return Address(usual)
    raise DeviceError(
        f"There is no host {profile!r} in your ssh configuration, and devices of this profile have "
        "no usual name.",
        remedy=f"edgekit targets add NAME USER@HOST --profile {profile}",
    )


def _hops(address: Address, jump: str | None, identity: str, *, depth: int) -> Iterator[Hop]:
    if depth > MAX_DEPTH:
        raise UsageError(f"{address.host}: the ssh configuration's jump hosts go round in circles.")
    found = _config_for(address.host).lookup(address.host)
    jump = found.get("proxyjump", "none") if jump is None else jump
    if "proxycommand" in found and found["proxycommand"] and jump.lower() in ("", "none"):
        raise UsageError(
            f"{address.host}: ProxyCommand of the ssh configuration is not supported.",
            remedy="Use ProxyJump, or give the target its option jump.",
        )
    if jump and jump.lower() != "none":
        first, *others = [parse_address(text.strip()) for text in jump.split(",")]
        yield from _hops(first, None, "", depth=depth + 1)
        for other in others:
            yield from _hops(other, "none", "", depth=depth + 1)
    yield _hop(address, found, identity)


def _hop(address: Address, found: Mapping[str, Any], identity: str) -> Hop:
    host = str(found.get("hostname", address.host))
    port = address.port or _port(found.get("port"), host)
    named = [identity] if identity else list(found.get("identityfile", ()))
    named = [text for text in named if text.lower() != "none"]
    alias = str(found.get("hostkeyalias", ""))
    known_as = alias or (host if port == PORT else f"[{host}]:{port}")
    return Hop(
        host=host,
        port=port,
        user=address.user or str(found.get("user", "")) or _own_name(host),
        identities=tuple(_path(text) for text in named or _DEFAULT_KEYS),
        chosen=bool(named),
        identities_only=bool(identity) or str(found.get("identitiesonly", "")).lower() == "yes",
        agent=_agent(str(found.get("identityagent", "SSH_AUTH_SOCK"))),
        known_as=known_as.lower(),
        known_hosts=(
            *_files(found.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2")),
            *_files(
                found.get(
                    "globalknownhostsfile", "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2"
                )
            ),
        ),
        hash_names=str(found.get("hashknownhosts", "")).lower() == "yes",
    )


def _own_name(host: str) -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in the password file, as in some containers
        raise UsageError(f"{host}: log in as whom?", remedy=f"Say USER@{host}.") from None


def _port(text: object, host: str) -> int:
    if text is None:
        return PORT
    if not str(text).isdigit() or int(str(text)) not in range(1, 65536):
        raise UsageError(f"{host}: Port {text} of the ssh configuration is no port.")
    return int(str(text))


def _agent(text: str) -> str:
    if text.lower() == "none":
        return ""
    if text == "SSH_AUTH_SOCK" or text.startswith("$"):
        return os.environ.get(text.removeprefix("$").strip("{}"), "")
    return str(_path(text))


def _files(text: object) -> tuple[Path, ...]:
    return tuple(_path(name) for name in str(text).split() if name.lower() != "none")


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text.strip('"').replace("%d", "~")))


class _Config:
    """The configuration as it applies to one host."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._patterns: list[str] = []

    def names(self, host: str) -> bool:
        """Whether a Host line speaks of this host in particular."""
        return any(fnmatch.fnmatchcase(host, p) for p in self._patterns if p.strip("*"))

    def lookup(self, host: str) -> Mapping[str, Any]:
        from paramiko import SSHConfig, SSHException

        try:
            found: Mapping[str, Any] = SSHConfig.from_text("\n".join(self._lines)).lookup(host)
        except (SSHException, ValueError, KeyError, OSError) as error:
            raise UsageError(f"The ssh configuration cannot be read: {error}") from error
        return found

    def read(self, file: Path, host: str, folder: Path, *, depth: int = 0) -> None:
        """Adds a file's lines; what an Include brings counts only where its block does."""
        if depth > MAX_DEPTH:
            raise UsageError(f"{file}: too many levels of Include.")
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror}.") from error
        block = "Host *"
        self._lines.append(block)
        for line in text.splitlines():
            match = _DIRECTIVE.fullmatch(line)
            word = match[1].lower() if match and not line.lstrip().startswith("#") else ""
            if match and word in ("host", "match"):
                block = line
                if word == "host":
                    self._patterns += [p for p in match[2].split() if not p.startswith("!")]
            if match and word == "include":
                if self._applies(host):
                    for name in match[2].replace('"', "").split():
                        pattern = os.path.join(folder, os.path.expanduser(name))
                        for path in sorted(glob.glob(pattern)):
                            self.read(Path(path), host, folder, depth=depth + 1)
                self._lines.append(block)
            else:
                self._lines.append(line)

    def _applies(self, host: str) -> bool:
        """Whether the block that the lines so far end in is one for this host."""
        self._lines.append("edgekitblock yes")
        try:
            return "edgekitblock" in self.lookup(host)
        finally:
            self._lines.pop()


def _config_for(host: str) -> _Config:
    config = _Config()
    home = Path(os.path.expanduser("~/.ssh"))
    config.read(home / "config", host, home)
    config.read(SYSTEM_CONFIG, host, SYSTEM_CONFIG.parent)
    return config
