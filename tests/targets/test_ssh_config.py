"""The ssh configuration as OpenSSH reads it: compared with `ssh -G` where that can tell."""

from __future__ import annotations

import getpass
import subprocess
from pathlib import Path

import pytest

from edgekit.errors import DeviceError, UsageError
from edgekit.targets import ssh_config
from edgekit.targets.ssh_config import Address, parse_address, route
from edgekit.types import Target
from tests.targets.ssh_tools import write_config


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setattr(ssh_config, "SYSTEM_CONFIG", tmp_path / "etc" / "ssh_config")
    (tmp_path / "etc").mkdir()
    return tmp_path


def target(address: str, profile: str = "", **options: str) -> Target:
    return Target("board", "ssh", address, profile=profile, options=options)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("pi", Address("pi")),
        ("pi@10.0.0.7", Address("10.0.0.7", "pi")),
        ("pi@board.local:2222", Address("board.local", "pi", 2222)),
        ("ssh://pi@board:2222", Address("board", "pi", 2222)),
        ("ssh://board/", Address("board")),
        ("ssh://pi@[fe80::1%eth0]:22", Address("fe80::1%eth0", "pi", 22)),
        ("a_b-c", Address("a_b-c")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    ["", "ssh://", "pi@", "host:", "host:0", "host:65536", "host:port", "a b", "host/path",
     "-oProxyCommand=id", "pi@-x", "http://host", "host:22:22"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="is no address"):
        parse_address(text)


def test_without_any_configuration(home: Path) -> None:
    (hop,) = route(target("board"))
    assert (hop.host, hop.port, hop.user) == ("board", 22, getpass.getuser())
    assert hop.identities[0] == home / ".ssh" / "id_ed25519" and not hop.chosen
    assert hop.known_hosts[0] == home / ".ssh" / "known_hosts" and hop.known_as == "board"
    assert hop.agent == "/run/agent" and not hop.identities_only
    assert str(hop) == f"{getpass.getuser()}@board"


CONFIG = """\
# first value wins
Host pi board-?
  HostName 10.0.0.7
  User = pi
  Port 2222
  IdentityFile ~/.ssh/board
  IdentityFile "~/.ssh/other"

Host jumped
  ProxyJump hop@gate:2200
Match host 10.9.* user nobody
  Port 9
Host *.lab !gate.lab
  User lab
  IdentitiesOnly yes
  IdentityAgent none
  HostKeyAlias Lab
  UserKnownHostsFile ~/a ~/b
  GlobalKnownHostsFile none
  HashKnownHosts yes
Host *
  Include conf.d/*.conf
  User everybody
"""


def test_a_configuration(home: Path) -> None:
    write_config(home, CONFIG)
    (home / ".ssh" / "conf.d").mkdir()
    (home / ".ssh" / "conf.d" / "a.conf").write_text("Host included\n  HostName inner\n")
    (home / "etc" / "ssh_config").write_text("Host *\n  Port 77\n")
    (pi,) = route(target("pi"))
    assert (pi.host, pi.port, pi.user) == ("10.0.0.7", 2222, "pi")
    assert pi.identities[1] == home / ".ssh" / "other" and pi.chosen
    assert pi.known_as == "[10.0.0.7]:2222"
    (lab,) = route(target("x.lab"))
    assert (lab.user, lab.port, lab.identities_only, lab.agent) == ("lab", 77, True, "")
    assert (lab.known_as, lab.known_hosts) == ("lab", (home / "a", home / "b"))
    assert lab.hash_names
    (included,) = route(target("included"))
    assert (included.host, included.user) == ("inner", "everybody")
    (plain,) = route(target("gate.lab"))
    assert (plain.user, plain.known_as) == ("everybody", "[gate.lab]:77")


@pytest.mark.parametrize("host", ["pi", "board-x", "jumped", "x.lab", "gate.lab", "included", "y"])
def test_openssh_agrees(home: Path, host: str) -> None:
    write_config(home, CONFIG)
    (home / ".ssh" / "conf.d").mkdir()
    (home / ".ssh" / "conf.d" / "a.conf").write_text("Host included\n  HostName inner\n")
    told = subprocess.run(
        ["ssh", "-G", "-F", home / ".ssh" / "config", host], capture_output=True, text=True
    ).stdout
    values = dict(line.split(" ", 1) for line in told.splitlines() if " " in line)
    hop = route(target(host))[-1]
    assert (hop.host, str(hop.port), hop.user) == (
        values["hostname"],
        values["port"],
        values["user"],
    )
    assert ("proxyjump" in values) == (len(route(target(host))) == 2)


def test_include_counts_only_where_its_block_does(home: Path) -> None:
    write_config(home, "Host a\n  Include inner\n  Port 2\nHost b\n  Port 3\n")
    (home / ".ssh" / "inner").write_text("User included\nHost b\n  User wrong\n")
    assert [(h.user, h.port) for h in route(target("a"))] == [("included", 2)]
    assert [(h.user, h.port) for h in route(target("b"))] == [(getpass.getuser(), 3)]
    (home / ".ssh" / "inner").write_text("Include inner\n")
    with pytest.raises(UsageError, match="too many levels"):
        route(target("a"))


def test_what_the_target_says_wins(home: Path) -> None:
    write_config(home, CONFIG)
    (hop,) = route(target("me@pi:99", identity="~/k"))
    assert (hop.user, hop.port, hop.identities) == ("me", 99, (home / "k",))
    assert hop.chosen and hop.identities_only
    assert [str(h) for h in route(target("jumped", jump="none"))] == ["everybody@jumped"]
    assert len(route(target("pi", jump="a,b@c:9"))) == 3


def test_jump_hosts_have_a_configuration_too(home: Path) -> None:
    write_config(
        home,
        "Host far\n  ProxyJump middle\nHost middle\n  HostName m\n  ProxyJump near\n"
        "Host near\n  Port 9\n",
    )
    user = getpass.getuser()
    assert [str(hop) for hop in route(target("far"))] == [
        f"{user}@near:9",
        f"{user}@m",
        f"{user}@far",
    ]
    write_config(home, "Host a\n  ProxyJump b\nHost b\n  ProxyJump a\n")
    with pytest.raises(UsageError, match="circles"):
        route(target("a"))


def test_proxy_command_is_refused_and_not_passed_over(home: Path) -> None:
    write_config(home, "Host a\n  ProxyCommand nc %h %p\nHost b\n  ProxyCommand none\n")
    with pytest.raises(UsageError, match="ProxyCommand"):
        route(target("a"))
    assert len(route(target("b"))) == 1


@pytest.mark.parametrize("text", ["Port many\n", "Match\n", "NoValue\n"])
def test_a_wrong_configuration_is_said(home: Path, text: str) -> None:
    write_config(home, text)
    with pytest.raises(UsageError, match="ssh configuration"):
        route(target("a"))


def test_a_profile_means_the_configured_host_or_the_usual_one(home: Path) -> None:
    assert route(target("rpi4", "rpi4"))[0].host == "raspberrypi.local"
    assert route(target("other", "rpi4"))[0].host == "other"
    with pytest.raises(DeviceError, match="no usual name") as caught:
        route(target("linux-aarch64", "linux-aarch64"))
    assert "edgekit targets add NAME USER@HOST --profile linux-aarch64" in caught.value.remedy
    write_config(home, "Host *\n  User pi\n")
    (hop,) = route(target("rpi4", "rpi4"))
    assert (hop.host, hop.user) == ("raspberrypi.local", "pi")
    write_config(home, "Host rpi*\n  User x\nHost rpi4\n  HostName 10.0.0.4\n")
    assert route(target("rpi4", "rpi4"))[0].host == "10.0.0.4"
