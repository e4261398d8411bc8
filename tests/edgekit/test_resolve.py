"""What --target may name, and which device it then means."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from edgekit import registry
from edgekit.errors import UsageError
from edgekit.resolve import resolve_one, resolve_target, resolve_targets, spelled
from edgekit.types import Target

HERE = Target("here", "local", "", workdir="/tmp/x")
PI = Target("pi", "ssh", "pi@raspberrypi.local")
KNOWN: Mapping[str, Target] = {"here": HERE, "pi": PI}


@pytest.fixture
def with_adb(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this version had the transport that is to come."""
    monkeypatch.setitem(registry.TRANSPORTS, "adb", "somewhere:Adb")


def test_a_name_of_the_file_and_local() -> None:
    assert resolve_target("here", KNOWN) == HERE
    assert resolve_target("local", {}) == Target("local", "local", "")
    own = Target("local", "local", "", workdir="/elsewhere")
    assert resolve_target("local", {"local": own}) == own


def test_what_this_version_cannot_reach_is_said() -> None:
    with pytest.raises(UsageError, match=r"transport adb is not available in this version"):
        resolve_target("adb:R5C0000", KNOWN)


@pytest.mark.usefixtures("with_adb")
def test_addresses() -> None:
    assert resolve_target("ssh://pi@10.0.0.7:2222", {}) == Target(
        "10.0.0.7_2222", "ssh", "ssh://pi@10.0.0.7:2222"
    )
    assert resolve_target("adb:R5C0000", {}) == Target("R5C0000", "adb", "R5C0000")


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("ssh://pi@10.0.0.7:2222", "10.0.0.7_2222", "ssh://pi@10.0.0.7:2222"),
        ("ssh://pi@[fe80::1%eth0]", "fe80_1_eth0", "'ssh://pi@[fe80::1%eth0]'"),
        ("rpi4", "rpi4", "rpi4"),
        ("pi", "pi", "pi"),
    ],
)
def test_how_a_target_is_spelled_for_the_next_command(text: str, name: str, words: str) -> None:
    found = resolve_target(text, KNOWN)
    assert (found.name, spelled(found)) == (name, words)


def test_a_profile_means_the_ssh_host_of_that_name() -> None:
    found = resolve_target("rpi4", {})
    assert (found.transport, found.address, found.profile) == ("ssh", "rpi4", "rpi4")


def test_unknown_names_are_suggested() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_target("heer", KNOWN)
    assert "Did you mean 'here'?" in caught.value.remedy


def test_several_and_one() -> None:
    assert resolve_targets(None, {"here": HERE}) == [HERE]
    assert resolve_targets(["local", "here"], KNOWN)[1] == HERE
    for texts, known in ((None, {}), (["here", "here"], KNOWN)):
        with pytest.raises(UsageError):
            resolve_targets(texts, known)
    assert resolve_one(None, {"here": HERE}) == HERE
    with pytest.raises(UsageError, match=r"Which target"):
        resolve_one(None, KNOWN)
