"""Host keys: what known_hosts says, against real keys, ssh-keygen's own output, and a real sshd."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import sshd
from benchmarks.sshd import Server
from edgekit.errors import DeviceError
from edgekit.targets.ssh import SshTransport
from edgekit.targets.ssh_config import Hop
from edgekit.targets.ssh_trust import (
    HostKey,
    HostKeyRefused,
    UnknownHost,
    judge,
    known_types,
    parse_known_hosts,
    remember,
)
from tests.targets.ssh_tools import target_of

TRUST = "edgekit targets trust board"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HostKey]:
    folder = tmp_path_factory.mktemp("keys")
    found = {}
    for name, kind in (("a", "ed25519"), ("b", "ed25519"), ("ecdsa", "ecdsa")):
        words = sshd.make_key(folder / name, kind=kind).with_suffix(".pub").read_text().split()
        (entry,) = parse_known_hosts(f"host {words[0]} {words[1]}", "file")
        found[name] = entry.key
        listed = subprocess.run(
            ["ssh-keygen", "-lf", folder / f"{name}.pub"], capture_output=True, text=True
        )
        assert entry.key.fingerprint == listed.stdout.split()[1]
    return found


def line(names: str, key: HostKey) -> str:
    import base64

    return f"{names} {key.kind} {base64.b64encode(key.blob).decode()} comment\n"


def hop(known_as: str, *files: Path, hash_names: bool = False) -> Hop:
    return Hop("host", 22, "pi", (), False, False, "", known_as, files, hash_names)


@pytest.mark.parametrize(
    ("names", "known_as"),
    [
        ("host", "host"),
        ("other,host", "host"),
        ("HOST", "host"),
        ("[host]:2222", "[host]:2222"),
        ("*.lab", "pi.lab"),
        ("h?st", "host"),
        ("*,!other", "host"),
        ("fe80::1", "fe80::1"),
        ("[fe80::1]:2222", "[fe80::1]:2222"),
    ],
)
def test_names_that_match(names: str, known_as: str, keys: dict[str, HostKey]) -> None:
    judge(parse_known_hosts(line(names, keys["a"]), "f"), hop(known_as), keys["a"], trust=TRUST)


@pytest.mark.parametrize(
    ("names", "known_as"),
    [
        ("host", "host2"),
        ("host", "[host]:2222"),
        ("[host]:2222", "host"),
        ("[host]:2222", "h:2222"),
        ("*,!host", "host"),
        ("!host", "host"),
        ("|1|broken|", "host"),
    ],
)
def test_names_that_do_not(names: str, known_as: str, keys: dict[str, HostKey]) -> None:
    entries = parse_known_hosts(line(names, keys["a"]), "f")
    with pytest.raises(UnknownHost) as caught:
        judge(entries, hop(known_as), keys["a"], trust=TRUST)
    assert keys["a"].fingerprint in caught.value.message and TRUST in caught.value.remedy


def test_names_that_ssh_keygen_hashed(tmp_path: Path, keys: dict[str, HostKey]) -> None:
    file = tmp_path / "known"
    file.write_text(line("host", keys["a"]) + line("[host]:2222", keys["b"]))
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", file], check=True, capture_output=True)
    assert "host" not in file.read_text().replace(" comment", "")
    entries = parse_known_hosts(file.read_text(), "f")
    judge(entries, hop("host"), keys["a"], trust=TRUST)
    judge(entries, hop("[host]:2222"), keys["b"], trust=TRUST)
    with pytest.raises(HostKeyRefused, match="has changed"):
        judge(entries, hop("host"), keys["b"], trust=TRUST)


def test_a_changed_key_names_the_line_and_the_way_out(keys: dict[str, HostKey]) -> None:
    entries = parse_known_hosts("# mine\n\n" + line("host", keys["a"]), "/home/me/known hosts")
    with pytest.raises(HostKeyRefused, match="has changed") as caught:
        judge(entries, hop("host"), keys["b"], trust=TRUST)
    assert not isinstance(caught.value, UnknownHost)
    assert "/home/me/known hosts, line 3" in caught.value.message
    assert keys["a"].fingerprint in caught.value.message
    assert "ssh-keygen -f '/home/me/known hosts' -R host" in caught.value.remedy


def test_a_key_of_another_type_is_a_changed_one(keys: dict[str, HostKey]) -> None:
    entries = parse_known_hosts(line("host", keys["a"]), "f")
    with pytest.raises(HostKeyRefused, match="has changed"):
        judge(entries, hop("host"), keys["ecdsa"], trust=TRUST)
    assert known_types(entries, "host") == ["ssh-ed25519"]
    both = parse_known_hosts(line("host", keys["a"]) + line("host", keys["ecdsa"]), "f")
    judge(both, hop("host"), keys["ecdsa"], trust=TRUST)


def test_a_revoked_key_is_refused_even_where_it_is_known(keys: dict[str, HostKey]) -> None:
    text = line("host", keys["a"]) + "@revoked " + line("*", keys["a"])
    with pytest.raises(HostKeyRefused, match="revoked"):
        judge(parse_known_hosts(text, "f"), hop("host"), keys["a"], trust=TRUST)


def test_lines_that_are_none_are_passed_over(keys: dict[str, HostKey]) -> None:
    text = "host ssh-ed25519\nhost ssh-ed25519 no*base64\n@cert-authority " + line("*", keys["a"])
    assert parse_known_hosts(text, "f") == []


@pytest.mark.parametrize("hash_names", [False, True])
def test_what_is_remembered_is_known_to_openssh_too(
    tmp_path: Path, keys: dict[str, HostKey], hash_names: bool
) -> None:
    file = tmp_path / "new" / "known_hosts"
    one = hop("[host]:2222", file, hash_names=hash_names)
    assert remember(one, keys["a"]) == file and file.stat().st_mode & 0o777 == 0o600
    file.write_text(file.read_text().rstrip("\n"))  # as some editors leave it
    remember(dataclasses.replace(one, known_as="other"), keys["b"])
    entries = parse_known_hosts(file.read_text(), "f")
    judge(entries, one, keys["a"], trust=TRUST)
    assert ("host" in file.read_text()) == (not hash_names)
    found = subprocess.run(
        ["ssh-keygen", "-F", "[host]:2222", "-f", file], capture_output=True, text=True
    )
    assert found.returncode == 0 and keys["a"].kind in found.stdout


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path, keys: dict[str, HostKey]) -> None:
    with pytest.raises(DeviceError, match="cannot be written"):
        remember(hop("host", tmp_path), keys["a"])
    with pytest.raises(DeviceError, match="names no file"):
        remember(hop("host"), keys["a"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = sshd.start(tmp_path_factory.mktemp("sshd"), host_key="rsa")
    yield running
    running.stop()


@pytest.fixture
def known_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".ssh").mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return tmp_path / ".ssh" / "known_hosts"


def test_a_real_server_unknown_known_changed(
    server: Server, known_hosts: Path, tmp_path: Path
) -> None:
    """With an RSA key, whose type on the wire is not that of its signatures."""
    transport = SshTransport(target_of(server))
    with pytest.raises(UnknownHost) as caught:
        transport.run(["true"], timeout_s=20)
    listed = subprocess.run(
        ["ssh-keygen", "-lf", server.folder / "host_key.pub"], capture_output=True, text=True
    )
    assert caught.value.fingerprint == listed.stdout.split()[1]
    assert caught.value.fingerprint in caught.value.message
    assert "edgekit targets trust board" in caught.value.remedy
    assert not known_hosts.exists()
    known_hosts.write_text(server.known_hosts_line)
    assert transport.run(["true"], timeout_s=20).returncode == 0
    transport.close()
    other = sshd.make_key(tmp_path / "other", kind="rsa").with_suffix(".pub").read_text().split()
    known_hosts.write_text(f"[127.0.0.1]:{server.port} {other[0]} {other[1]}\n")
    with pytest.raises(HostKeyRefused, match="has changed"):
        transport.run(["true"], timeout_s=20)
    assert "Accepted" in (server.folder / "log").read_text()


def test_a_bare_address_is_trusted_by_the_address(server: Server, known_hosts: Path) -> None:
    from edgekit.resolve import resolve_target

    transport = SshTransport(resolve_target(server.address, {}))
    with pytest.raises(UnknownHost) as caught:
        transport.run(["true"], timeout_s=20)
    assert f"edgekit targets trust {server.address}" in caught.value.remedy
