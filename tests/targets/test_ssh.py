"""SshTransport against a real sshd: the contract, and what becomes of bad links."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import sshd
from benchmarks.sshd import Server
from edgekit.errors import DeviceError, LinkLost, UsageError
from edgekit.targets import ssh_connect, ssh_exchange
from edgekit.targets.device import connect
from edgekit.targets.ssh import SshTransport
from edgekit.types import Target
from tests.targets.ssh_tools import Proxy, full_listener, logins, target_of
from tests.targets.transport_contract import ROOT, TransportContract, wait_gone


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = sshd.start(tmp_path_factory.mktemp("sshd"))
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def home(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home that knows the server."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".ssh").mkdir(mode=0o700)
    (folder / ".ssh" / "known_hosts").write_text(server.known_hosts_line)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        yield folder


@pytest.fixture
def transport(server: Server) -> Iterator[SshTransport]:
    made = SshTransport(target_of(server))
    yield made
    made.close()


@pytest.fixture
def remake(server: Server) -> str:
    return (
        "from edgekit.targets.ssh import SshTransport; from edgekit.types import Target; "
        f"transport = SshTransport({target_of(server)!r})"
    )


@pytest.fixture
def proxy(server: Server, home: Path) -> Iterator[Proxy]:
    between = Proxy(server.port)
    with open(home / ".ssh" / "known_hosts", "a") as known:
        known.write(f"[127.0.0.1]:{between.port} {server.host_key}\n")
    yield between
    between.close()


class TestSshTransport(TransportContract):
    module = "edgekit.targets.ssh"


def test_a_device_takes_one_connection(server: Server, tmp_path: Path) -> None:
    before = logins(server)
    target = target_of(server)
    machine = f"linux-{os.uname().machine}"
    with connect(
        Target("board", "ssh", target.address, str(tmp_path / "root"), machine, target.options)
    ) as device:
        assert device.facts().arch == os.uname().machine
        assert device.status(verify=True).activations == ()
        assert device.gc() >= 0
    assert logins(server) == before + 1


def test_a_host_that_is_killed_leaves_nothing_behind(remake: str, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"sleep 300 & echo $! > {note}; wait"
    code = f"{remake}\ntransport.run(['sh', '-c', {script!r}], timeout_s=300)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    try:
        while not (note.exists() and note.read_text().strip()):
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert wait_gone(int(note.read_text()))


def test_killed_server_processes_are_a_lost_link_and_then_a_new_one(
    server: Server, transport: SshTransport, tmp_path: Path
) -> None:
    note = tmp_path / "pid"
    threading.Timer(1.0, server.kill_sessions).start()
    with pytest.raises(LinkLost):
        transport.run(["sh", "-c", f"echo $$ > {note}; exec sleep 300"], timeout_s=60)
    assert wait_gone(int(note.read_text())), "remote.py notices that nobody listens"
    assert transport.run(["echo", "again"], timeout_s=20).stdout == b"again\n"


def test_a_link_lost_between_two_calls_is_not_noticed(
    server: Server, transport: SshTransport
) -> None:
    transport.run(["true"], timeout_s=20)
    before = logins(server)
    server.kill_sessions()
    assert transport.run(["echo", "again"], timeout_s=20).stdout == b"again\n"
    assert logins(server) == before + 1


def test_a_cut_copy_goes_on_where_it_stopped(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    data = os.urandom(12_000_000)
    (tmp_path / "a").write_bytes(data)
    proxy.cut_after(4_000_000, 9_000_000)
    sent: list[int] = []
    transport = SshTransport(target_of(server, port=proxy.port))
    transport.put(tmp_path / "a", str(tmp_path / "b"), sent.append)
    assert (tmp_path / "b").read_bytes() == data
    assert sum(sent) == len(data) and min(sent) > 0
    assert proxy.opened == 3
    # What was under way at a cut is sent again: at most a window of 2 MiB and the buffers.
    assert proxy.passed < 1.6 * len(data)
    transport.close()


def test_a_cut_fetch_goes_on_where_it_stopped(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    data = os.urandom(40_000_000)
    (tmp_path / "a").write_bytes(data)
    transport = SshTransport(target_of(server, port=proxy.port))
    transport.run(["true"], timeout_s=20)
    threading.Timer(0.1, proxy.cut).start()
    transport.get(str(tmp_path / "a"), tmp_path / "b", len(data))
    assert (tmp_path / "b").read_bytes() == data and proxy.opened == 2
    transport.close()


def test_a_link_that_stays_away_is_lost_in_the_end(
    server: Server, proxy: Proxy, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(bytes(12_000_000))
    proxy.cut_after(4_000_000)
    transport = SshTransport(target_of(server, port=proxy.port, reconnect_s="1"))

    with pytest.raises(LinkLost, match="cannot be reached"):
        transport.put(tmp_path / "a", str(tmp_path / "b"), lambda count: proxy.refuse())


@pytest.mark.parametrize("copying", [False, True])
def test_silence_is_a_lost_link(
    server: Server,
    proxy: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    copying: bool,
) -> None:
    """The link stays open and takes bytes; the kernel sees nothing wrong for a while."""
    monkeypatch.setattr(ssh_exchange, "SILENCE_S", 1.0)
    monkeypatch.setattr(ssh_exchange, "CLOSE_S", 0.5)
    monkeypatch.setattr(ssh_exchange, "OPEN_S", 1.0)
    (tmp_path / "a").write_bytes(bytes(60_000_000))
    limits = {"connect_timeout_s": "1", "reconnect_s": "0.1"}
    transport = SshTransport(target_of(server, port=proxy.port, **limits))
    transport.run(["true"], timeout_s=20)
    threading.Timer(0.2, proxy.freeze).start()
    started = time.monotonic()
    with pytest.raises(LinkLost):
        if copying:
            transport.put(tmp_path / "a", str(tmp_path / "b"))
        else:
            transport.run(["sleep", "300"], timeout_s=300)
    assert time.monotonic() - started < 20
    transport.close()


def test_a_dead_link_is_noticed_by_the_kernel(server: Server, proxy: Proxy) -> None:
    transport = SshTransport(target_of(server, port=proxy.port, link_timeout_s="7"))
    transport.run(["true"], timeout_s=20)
    assert transport._connection is not None
    wire = transport._connection.transport.sock
    assert wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
    transport.close()


def test_a_black_hole_is_given_up(server: Server) -> None:
    listener, waiting = full_listener()
    port = listener.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(LinkLost, match=r"did not answer within 0\.5 s"):
        SshTransport(target_of(server, port=port, connect_timeout_s="0.5")).run(
            ["true"], timeout_s=20
        )
    assert time.monotonic() - started < 3
    for end in (listener, *waiting):
        end.close()


def test_a_server_that_never_greets_is_given_up(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(LinkLost, match=r"did not greet within 0\.5 s"):
            SshTransport(target_of(server, port=port, connect_timeout_s="0.5")).run(
                ["true"], timeout_s=20
            )
    assert time.monotonic() - started < 3


def test_nothing_listens(server: Server) -> None:
    with pytest.raises(LinkLost, match="cannot be reached: Connection refused"):
        SshTransport(target_of(server, port=sshd.free_port())).run(["true"], timeout_s=20)


def test_an_unknown_name_is_said(server: Server) -> None:
    target = Target("board", "ssh", "nobody@no-such-host.invalid")
    with pytest.raises(DeviceError, match=r"There is no host 'no-such-host\.invalid'") as caught:
        SshTransport(target).run(["true"], timeout_s=20)
    assert not isinstance(caught.value, LinkLost)


def test_a_busy_server_is_asked_again(server: Server, proxy: Proxy) -> None:
    proxy.drop_next(2)
    transport = SshTransport(target_of(server, port=proxy.port))
    assert transport.run(["true"], timeout_s=20).returncode == 0 and proxy.opened == 3
    transport.close()
    proxy.drop_next(100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssh_connect, "MAX_BACK_OFF_S", 0.01)
        with pytest.raises(LinkLost, match="hung up during the handshake"):
            transport.run(["true"], timeout_s=20)


def test_many_connect_at_once_and_none_is_dropped(server: Server) -> None:
    """sshd here drops connections from the tenth unfinished one on, as it does by default."""
    transports = [SshTransport(target_of(server)) for _ in range(14)]
    codes: list[int] = []

    def one(transport: SshTransport) -> None:
        codes.append(transport.run(["true"], timeout_s=60).returncode)

    threads = [threading.Thread(target=one, args=(transport,)) for transport in transports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for transport in transports:
        transport.close()
    assert codes == [0] * len(transports)
    assert "MaxStartups" not in (server.folder / "log").read_text()


def test_places_for_opening_are_counted_across_processes() -> None:
    held = []
    for _ in range(ssh_connect.MAX_OPENING):
        place = ssh_connect.opening("server:1")
        place.__enter__()
        held.append(place)
    code = (
        "from edgekit.targets import ssh_connect as c; c.OPENING_WAIT_S = 0.2\n"
        "with c.opening('other:1'): pass\n"
        "with c.opening('server:1'): pass"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "LinkLost: 8 connections to server:1" in done.stderr
    held.pop().__exit__(None, None, None)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    for place in held:
        place.__exit__(None, None, None)


def test_a_device_without_python_is_said(server: Server) -> None:
    transport = SshTransport(target_of(server, python="no-such-python; id"))
    with pytest.raises(DeviceError, match=r"no no-such-python; id on the device .*not found"):
        transport.run(["true"], timeout_s=20)
    transport.close()


def test_what_login_scripts_print_does_no_harm(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "login"
    noisy = sshd.start(tmp_path / "noisy", options={"ForceCommand": f"exec sh {script}"})
    (home / ".ssh" / "known_hosts").write_text(noisy.known_hosts_line)
    transport = SshTransport(target_of(noisy))
    go_on = 'exec sh -c "$SSH_ORIGINAL_COMMAND"\n'
    try:
        script.write_text(f"echo Welcome, have a fortune; echo more >&2\n{go_on}")
        done = transport.run(["sh", "-c", "echo out; echo err >&2"], timeout_s=20)
        assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
        script.write_text("exec yes noise\n")
        with pytest.raises(DeviceError, match="answers with something else"):
            transport.run(["true"], timeout_s=20)
        script.write_text("echo This account is currently not available.; exit 1\n")
        with pytest.raises(DeviceError, match="This account is currently not available"):
            transport.run(["true"], timeout_s=20)
    finally:
        transport.close()
        noisy.stop()


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_time_outs_are_numbers(server: Server, text: str) -> None:
    with pytest.raises(UsageError, match="connect_timeout_s"):
        SshTransport(target_of(server, connect_timeout_s=text))
