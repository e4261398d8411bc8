"""``edgekit targets``, with a real sshd where one is needed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import sshd
from benchmarks.sshd import Server
from tests.edgekit.cli.conftest import Done

Call = Callable[..., Done]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = sshd.start(tmp_path_factory.mktemp("sshd"))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    (folder / ".ssh").mkdir(mode=0o700, parents=True)
    # Debian hashes names by default.
    (folder / ".ssh" / "config").write_text("HashKnownHosts no\n")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return folder


@pytest.fixture
def pole(call: Call, server: Server) -> list[str]:
    """The arguments that add a target, and the target added."""
    arguments = ["targets", "add", "pole", server.address.removeprefix("ssh://")]
    arguments += ["--identity", str(server.identity), "--python", sys.executable]
    arguments += ["--workdir", str(Path.cwd() / "root")]
    done = call(*arguments)
    assert done.code == 0 and "Next: edgekit targets trust pole" in done.out
    return arguments


def test_from_adding_to_removing(
    call: Call, server: Server, pole: list[str], home: Path, tmp_path: Path
) -> None:
    again = call(*pole)
    assert again.code == 2 and "already" in again.err
    (listed,) = call("targets", "list", "--json").document["targets"]
    assert listed["name"] == "pole" and listed["options"]["identity"] == str(server.identity)
    assert "pole" in call("targets", "list").out

    refused = call("status", "--target", "pole")
    assert refused.code == 4 and "SHA256:" in refused.err
    assert "edgekit targets trust pole" in refused.err

    wrong = call("targets", "trust", "pole", "--fingerprint", "SHA256:" + "A" * 43)
    assert wrong.code == 4 and "not SHA256:AAAA" in wrong.err
    known = home / ".ssh" / "known_hosts"
    assert not known.exists()
    trusted = call("targets", "trust", "pole", "--json").document["servers"]
    assert trusted[0]["fingerprint"] in refused.err and trusted[0]["added_to"] == str(known)
    assert server.known_hosts_line == known.read_text()
    (again_trusted,) = call("targets", "trust", "pole", "--json").document["servers"]
    assert again_trusted["added_to"] is None and known.read_text().count("\n") == 1

    shown = call("targets", "show", "pole", "--json").document
    assert shown["route"][0]["port"] == server.port
    assert shown["route"][0]["known_keys"] == [f"{trusted[0]['fingerprint']} (ssh-ed25519)"]
    assert shown["facts"]["cpu_count"] >= 1 and shown["misfits"] == []
    assert call("status", "--target", "pole", "--json").document["target"] == "pole"

    assert call("targets", "remove", "pole").code == 0
    assert call("targets", "remove", "pole").code == 2
    assert (tmp_path / "edgekit.toml").read_text() == ""


def test_a_changed_key_cannot_be_trusted_over(
    call: Call, server: Server, pole: list[str], home: Path, tmp_path: Path
) -> None:
    other = sshd.make_key(tmp_path / "other").with_suffix(".pub").read_text()
    known = home / ".ssh" / "known_hosts"
    known.write_text(f"[127.0.0.1]:{server.port} {other}")
    done = call("targets", "trust", "pole")
    assert done.code == 4 and "has changed" in done.err and "ssh-keygen -f" in done.err
    assert known.read_text() == f"[127.0.0.1]:{server.port} {other}"


def test_trust_reaches_through_jump_hosts(
    call: Call, server: Server, home: Path, tmp_path: Path
) -> None:
    gate = sshd.start(tmp_path / "gate")
    try:
        (home / ".ssh" / "config").write_text(
            f"Host gate\n  HostName 127.0.0.1\n  Port {gate.port}\n  IdentityFile {gate.identity}\n"
        )
        address = server.address.removeprefix("ssh://")
        call("targets", "add", "pole", address, "--jump", "gate")
        one = sshd_fingerprint(gate)
        done = call("targets", "trust", "pole", "--fingerprint", one)
        assert done.code == 4 and f"127.0.0.1:{server.port} shows" in done.err
        found = call("targets", "trust", "pole", "--json").document["servers"]
        assert [item["added_to"] is None for item in found] == [True, False]
        shown = call("targets", "show", "pole", "--no-connect", "--json").document
        assert [hop["port"] for hop in shown["route"]] == [gate.port, server.port]
        assert "facts" not in shown
    finally:
        gate.stop()


def sshd_fingerprint(server: Server) -> str:
    from edgekit.targets.ssh_trust import parse_known_hosts

    (entry,) = parse_known_hosts(server.known_hosts_line, "")
    return entry.key.fingerprint


def test_the_config_keeps_its_comments(call: Call, tmp_path: Path) -> None:
    file = tmp_path / "edgekit.toml"
    shutil.copy(Path(__file__).parents[3] / "examples" / "efficientnet_lite0" / file.name, file)
    before = file.read_text()
    assert call("targets", "add", "here", "local", "--profile", "local").code == 0
    assert file.read_text().startswith(before)
    assert call("targets", "show", "here").code == 0
    call("targets", "remove", "here")
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show"], "targets show: which target?"),
        (["add", "x"], "what is its address?"),
        (["add", "x", "a b"], "no address"),
        (["add", "x", "h", "--profile", "rpi9"], "Unknown device profile 'rpi9'"),
        (["add", "x y", "h"], "a target's name must be"),
        (["remove", "x"], "no target 'x'"),
        (["trust", "local"], "not reached by SSH"),
        (["trust", "nowhere"], "no target 'nowhere'"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_wrong_usage(call: Call, arguments: list[str], message: str, tmp_path: Path) -> None:
    done = call("targets", *arguments)
    assert done.code == 2 and message in done.err
    assert not (tmp_path / "edgekit.toml").exists()
