"""Which device ``--target`` means: a name in edgekit.toml, a profile, an address or local."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import resources

from edgekit import registry
from edgekit.errors import UsageError
from edgekit.suggest import did_you_mean
from edgekit.types import Target

#: How the names of emulated devices begin; `edgekit virtual list` shows them.
_VIRTUAL = "virtual-"
_LOCAL = Target(name="local", transport="local", address="")


def profile_names() -> tuple[str, ...]:
    """The built-in device profiles, as their files in targets/profiles are called."""
    folder = resources.files("edgekit.targets") / "profiles"
    files = [item.name for item in folder.iterdir()]
    return tuple(sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml")))


def resolve_target(text: str, known: Mapping[str, Target]) -> Target:
    """The target that ``text`` names.

    Args:
        text: a key of ``known``, a profile, ``ssh://user@host:port``, ``adb:SERIAL``, ``local`` or
            the name of an emulated device, such as ``virtual-rpi4``.
        known: the targets of edgekit.toml.

    Raises:
        UsageError: nothing of that name, or its transport is not in this version.
    """
    found = known.get(text) or _from_text(text)
    if found is None:
        names = [*known, *profile_names(), "local"]
        raise UsageError(
            f"There is no target {text!r}.",
            remedy=did_you_mean(text, names)
            or f"Known: {', '.join(dict.fromkeys(names))}; or ssh://user@host, adb:SERIAL.",
        )
    if found.transport not in registry.transports():
        raise UsageError(
            f"{text}: transport {found.transport} is not available in this version.",
            remedy=f"Available: {', '.join(registry.transports())}.",
        )
    return found


def resolve_targets(texts: Sequence[str] | None, known: Mapping[str, Target]) -> list[Target]:
    """The targets that ``texts`` name; without any, all of edgekit.toml.

    Raises:
        UsageError: there is none at all, one twice, or one cannot be resolved.
    """
    wanted = list(texts or known)
    if not wanted:
        raise UsageError(
            "There is no target: none was given, and none is in edgekit.toml.",
            remedy="Give --target local, or add a table [targets.NAME].",
        )
    if len(set(wanted)) != len(wanted):
        raise UsageError(f"A target is named twice: {', '.join(wanted)}.")
    return [resolve_target(text, known) for text in wanted]


def resolve_one(text: str | None, known: Mapping[str, Target]) -> Target:
    """The one target meant: ``text``, or the only one of edgekit.toml.

    Raises:
        UsageError: it is not clear which, or it cannot be resolved.
    """
    if text is None and len(known) > 1:
        raise UsageError("Which target?", remedy=f"Give --target with one of: {', '.join(known)}.")
    return resolve_targets(None if text is None else [text], known)[0]


def _from_text(text: str) -> Target | None:
    if text == "local":
        return _LOCAL
    if text.startswith("ssh://"):
        return Target(name=_name_of(text), transport="ssh", address=text)
    if text.startswith("adb:"):
        serial = text.removeprefix("adb:")
        return Target(name=serial or "adb", transport="adb", address=serial)
    if text.startswith(_VIRTUAL):
        board = text.split("-")[1]
        profile = board if board in profile_names() else ""
        return Target(name=text, transport="virtual", address=text, profile=profile)
    if text in profile_names():
        return Target(name=text, transport="ssh", address=text, profile=text)
    return None


def _name_of(address: str) -> str:
    """What the target of a bare ``ssh://`` address is called in messages and results."""
    host = address.removeprefix("ssh://").rpartition("@")[2]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", host).strip("_") or "ssh"


def spelled(target: Target) -> str:
    """How to name a target on a command line, quoted for a shell."""
    bare = target.address.startswith("ssh://") and target.name == _name_of(target.address)
    return shlex.quote(target.address if bare else target.name)
