"""Where an emulated device is reached."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from edgekit.targets.virtual import network


def test_a_port_is_free_and_never_given_to_outgoing_connections() -> None:
    least = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {network.free_port() for _ in range(20)}
    assert len(ports) > 10 and max(ports) < least
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", ports.pop()))


def test_where_outgoing_connections_may_take_all_it_is_one_of_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(network, "_LEAST_PORT", port)
        monkeypatch.setattr(network, "_first_outgoing", lambda: port + 1)
        assert network.free_port() not in (0, port)
    monkeypatch.setattr(network, "_first_outgoing", lambda: 1024)
    assert network.free_port() > 1024
