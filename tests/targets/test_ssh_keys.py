"""Logging in to a real sshd: key files, the agent, passphrases, jump hosts."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import sshd
from benchmarks.sshd import Server
from edgekit.errors import DeviceError
from edgekit.targets.ssh import SshTransport
from edgekit.targets.ssh_trust import UnknownHost
from edgekit.types import Target
from tests.targets.ssh_tools import logins, target_of, write_config
from tests.targets.transport_contract import ROOT

SECRET = "correct horse battery"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = sshd.start(tmp_path_factory.mktemp("device"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = sshd.start(tmp_path_factory.mktemp("gate"))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def home(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".ssh").mkdir(mode=0o700)
    (tmp_path / ".ssh" / "known_hosts").write_text(server.known_hosts_line)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "agent"
    process = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.01)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield path
    process.kill()
    process.wait()


def works(target: Target) -> bool:
    transport = SshTransport(target)
    try:
        return transport.run(["echo", "in"], timeout_s=20).stdout == b"in\n"
    finally:
        transport.close()


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_key_files_of_every_kind(server: Server, home: Path, kind: str) -> None:
    key = sshd.make_key(home / ".ssh" / f"id_{kind}", kind=kind)
    target = target_of(server, identity="")
    with pytest.raises(DeviceError, match=f"it refused {key}") as caught:
        works(target)
    assert f"ssh-copy-id -p {server.port} {server.user}@127.0.0.1" in caught.value.remedy
    server.accept(key.with_suffix(".pub"))
    assert works(target)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The key of an authority that signs users' keys."""
    return sshd.make_key(tmp_path_factory.mktemp("authority") / "authority")


@pytest.fixture(scope="module")
def member(authority: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that trusts the authority."""
    trusted = {"TrustedUserCAKeys": f"{authority}.pub"}
    running = sshd.start(tmp_path_factory.mktemp("member"), options=trusted)
    yield running
    running.stop()


def certify(authority: Path, key: Path, user: str, *more: str) -> Path:
    """The certificate that ssh-keygen puts beside a key."""
    command = [
        "ssh-keygen",
        "-q",
        "-s",
        str(authority),
        "-I",
        "test",
        "-n",
        user,
        *more,
        f"{key}.pub",
    ]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return key.with_name(key.name + "-cert.pub")


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_certificate_is_offered_first_and_the_plain_key_then(
    server: Server, member: Server, authority: Path, home: Path, kind: str
) -> None:
    (home / ".ssh" / "known_hosts").write_text(server.known_hosts_line + member.known_hosts_line)
    key = sshd.make_key(home / "key", kind=kind)
    certificate = certify(authority, key, server.user)
    assert works(target_of(member, identity=str(key)))
    assert "CERT" in (member.folder / "log").read_text()
    with pytest.raises(DeviceError, match=f"it refused {certificate}, {key}"):
        works(target_of(server, identity=str(key)))
    server.accept(key.with_suffix(".pub"))
    assert works(target_of(server, identity=str(key)))
    member.accept(key.with_suffix(".pub"))
    certify(authority, key, server.user, "-V", "20200101:20200102")
    assert works(target_of(member, identity=str(key))), "it has expired"


@pytest.mark.parametrize(
    "damaged", [b"", b"\xff\xfe", b"ssh-ed25519-cert-v01@openssh.com AAAA\n", b"ssh-rsa !\n", None]
)
def test_a_certificate_that_is_none_does_not_shut_its_key_out(
    server: Server, home: Path, damaged: bytes | None
) -> None:
    key = sshd.make_key(home / "key")
    certificate = key.with_name("key-cert.pub")
    if damaged is None:
        certificate.symlink_to("/proc/self/mem")  # a regular file that cannot be read
    else:
        certificate.write_bytes(damaged)
    with pytest.raises(DeviceError, match=f"it refused {key}; {certificate} "):
        works(target_of(server, identity=str(key)))
    server.accept(key.with_suffix(".pub"))
    assert works(target_of(server, identity=str(key)))


def test_no_key_at_all_and_one_that_is_none(server: Server, home: Path) -> None:
    with pytest.raises(DeviceError, match="there is no key to offer"):
        works(target_of(server, identity=""))
    with pytest.raises(DeviceError, match="absent is not there"):
        works(target_of(server, identity=str(home / "absent")))
    (home / "text").write_text("no key\n")
    with pytest.raises(DeviceError, match="text is no private key"):
        works(target_of(server, identity=str(home / "text")))


def test_the_agent(server: Server, home: Path, agent: Path) -> None:
    subprocess.run(["ssh-add", "-q", server.identity], check=True)
    assert works(target_of(server, identity=""))
    # A named identity of which only the public half is here, and no other key of the agent.
    other = sshd.make_key(home / "other")
    subprocess.run(["ssh-add", "-q", other], check=True)
    public = home / "named.pub"
    public.write_text((server.folder / "identity.pub").read_text())
    assert works(target_of(server, identity=str(public)))
    with pytest.raises(DeviceError, match="it refused"):
        works(target_of(server, identity=str(other)))
    write_config(home, "Host *\n  IdentityAgent none\n")
    with pytest.raises(DeviceError, match="there is no key to offer"):
        works(target_of(server, identity=""))


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_a_certificate_of_a_key_that_the_agent_holds(
    server: Server, member: Server, authority: Path, home: Path, agent: Path, kind: str
) -> None:
    (home / ".ssh" / "known_hosts").write_text(server.known_hosts_line + member.known_hosts_line)
    key = sshd.make_key(home / "key", kind=kind)
    subprocess.run(["ssh-add", "-q", key], check=True)
    with pytest.raises(DeviceError, match="it refused"):
        works(target_of(member, identity=str(key)))
    certify(authority, key, server.user)
    held = home / "key.kept"
    key.rename(held)
    assert works(target_of(member, identity=str(key))), "the file beside, and the agent's key"
    server.accept(key.with_suffix(".pub"))
    assert works(target_of(server, identity=str(key)))
    held.rename(key)
    # Now the agent holds both, as it does wherever the certificate was there first.
    subprocess.run(["ssh-add", "-q", key], check=True)
    for file in home.glob("key*"):
        file.unlink()
    assert works(target_of(member, identity=""))
    assert works(target_of(server, identity=""))


def test_a_dead_agent_is_no_obstacle(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(home / "gone"))
    assert works(target_of(server))


def test_a_locked_key_without_a_terminal(server: Server, home: Path) -> None:
    key = sshd.make_key(home / "locked", passphrase=SECRET)
    server.accept(key.with_suffix(".pub"))
    with pytest.raises(DeviceError, match=f"only asked for on a terminal .ssh-add {key}"):
        works(target_of(server, identity=str(key)))


def test_a_locked_key_with_the_agent_asks_nothing(server: Server, home: Path, agent: Path) -> None:
    key = sshd.make_key(home / "locked", passphrase=SECRET)
    server.accept(key.with_suffix(".pub"))
    ask = home / "ask"
    ask.write_text(f"#!/bin/sh\necho '{SECRET}'\n")
    ask.chmod(0o700)
    subprocess.run(
        ["ssh-add", "-q", key],
        check=True,
        env={**os.environ, "SSH_ASKPASS": str(ask), "SSH_ASKPASS_REQUIRE": "force"},
        stdin=subprocess.DEVNULL,
    )
    assert works(target_of(server, identity=str(key)))


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_a_passphrase_from_a_terminal(server: Server, home: Path, kind: str) -> None:
    """Asked again after a wrong one, not asked again after a lost link, never shown nor logged."""
    key = sshd.make_key(home / "locked", kind=kind, passphrase=SECRET)
    server.accept(key.with_suffix(".pub"))
    code = (
        "import logging; logging.basicConfig(level=1)\n"
        "from edgekit.targets.ssh import SshTransport; from edgekit.types import Target\n"
        f"transport = SshTransport({target_of(server, identity=str(key))!r})\n"
        "assert transport.run(['true'], timeout_s=20).returncode == 0\n"
        "transport._disconnect()\n"
        "assert transport.run(['true'], timeout_s=20).returncode == 0\n"
        "print('both' + ' ran')"
    )
    shown = on_a_terminal([sys.executable, "-c", code], ["wrong", SECRET])
    assert "both ran" in shown and shown.count("Passphrase of") == 2
    assert SECRET not in shown and "wrong" not in shown


def on_a_terminal(argv: list[str], answers: list[str]) -> str:
    """Runs a program on a terminal of its own and answers its prompts; returns all it shows."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        argv, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, start_new_session=True
    )
    os.close(slave)
    shown, asked, deadline = b"", 0, time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.2)[0]:
            try:
                piece = os.read(master, 65536)
            except OSError:  # the terminal is gone: the program ended
                break
            shown += piece
            if shown.count(b"Passphrase of") > asked and b": " in shown.rpartition(b"of")[2]:
                time.sleep(0.2)  # until the terminal does not echo
                os.write(master, answers[asked].encode() + b"\n")
                asked += 1
        elif process.poll() is not None:
            break
    process.kill()
    process.wait()
    os.close(master)
    return shown.decode("utf-8", "replace")


def test_a_jump_host(server: Server, gate: Server, home: Path) -> None:
    write_config(
        home,
        f"Host gate\n  HostName 127.0.0.1\n  Port {gate.port}\n  IdentityFile {gate.identity}\n"
        f"Host pole\n  HostName 127.0.0.1\n  Port {server.port}\n"
        f"  IdentityFile {server.identity}\n  ProxyJump gate\n",
    )
    pole = Target("pole", "ssh", "pole", options={"python": sys.executable})
    with pytest.raises(UnknownHost, match=f"127.0.0.1:{gate.port} is not known"):
        works(pole)
    known = home / ".ssh" / "known_hosts"
    known.write_text(gate.known_hosts_line)
    with pytest.raises(UnknownHost, match=f"127.0.0.1:{server.port} is not known"):
        works(pole)
    known.write_text(gate.known_hosts_line + server.known_hosts_line)
    before = logins(server), logins(gate)
    transport = SshTransport(pole)
    data = os.urandom(5_000_000)
    (home / "a").write_bytes(data)
    transport.put(home / "a", str(home / "b"))
    assert (home / "b").read_bytes() == data
    assert (logins(server), logins(gate)) == (before[0] + 1, before[1] + 1)
    gate.kill_sessions()
    assert transport.run(["echo", "again"], timeout_s=20).stdout == b"again\n"
    transport.close()


def test_what_the_jump_host_cannot_reach(gate: Server, home: Path) -> None:
    (home / ".ssh" / "known_hosts").write_text(gate.known_hosts_line)
    write_config(home, f"Host 127.0.0.1\n  IdentityFile {gate.identity}\n")
    target = Target(
        "pole",
        "ssh",
        f"127.0.0.1:{sshd.free_port()}",
        options={"jump": f"{gate.user}@127.0.0.1:{gate.port}"},
    )
    with pytest.raises(DeviceError, match="The jump host cannot reach 127"):
        works(target)
