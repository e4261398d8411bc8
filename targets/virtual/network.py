"""How the host reaches a device: an address of the device's own, or a port of this machine."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import random
import socket
import subprocess
from pathlib import Path

from edgekit.errors import DeviceError
from edgekit.targets.virtual.host import find

#: RFC 2544 sets these aside for tests of devices; nothing on the internet has one.
_NETWORK = ipaddress.IPv4Network("198.18.0.0/15")
_PAIR = 4  # addresses of a /30: network, host, device, broadcast
_TRIES = 64
_LEAST_PORT = 15000
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_pair(name: str, home: Path) -> tuple[str, str]:
    """The addresses of the two ends of a new link, as ``ADDRESS/30``: the host's, the device's.

    Raises:
        DeviceError: there is no ``ip``, or nothing is free.
    """
    used = _used()
    start = int.from_bytes(hashlib.sha256(f"{home}\0{name}".encode()).digest()[:4])
    pairs = _NETWORK.num_addresses // _PAIR
    for attempt in range(_TRIES):
        first = _NETWORK[(start + attempt) % pairs * _PAIR]
        pair = ipaddress.IPv4Network(f"{first}/30")
        if not any(pair.overlaps(network) for network in used):
            return f"{pair[1]}/30", f"{pair[2]}/30"
    raise DeviceError(f"All of {_NETWORK} is in use on this machine.")


def _used() -> list[ipaddress.IPv4Network]:
    ip = find("ip")
    if ip is None:
        raise DeviceError("There is no program ip here.")
    done = subprocess.run([ip, "-json", "-4", "address"], capture_output=True, text=True)
    if done.returncode:
        raise DeviceError(f"ip address: {done.stderr.strip()}")
    return [
        ipaddress.IPv4Network(f"{address['local']}/{address['prefixlen']}", strict=False)
        for link in json.loads(done.stdout or "[]")
        for address in link.get("addr_info", ())
        if "local" in address
    ]


def link_name(name: str, home: Path) -> str:
    """What the host's end of a device's link is called."""
    return "ek" + hashlib.sha256(f"{home}\0{name}".encode()).hexdigest()[:10]


def make_link(link: str, address: str, pid: int) -> None:
    """Makes a link between this machine and eth0 of a process's network; it ends with that.

    Raises:
        DeviceError: the kernel cannot.
    """
    ip = find("ip")
    assert ip is not None, "free_pair has asked"
    for words in (
        f"link add {link} type veth peer name eth0 netns {pid}",
        f"address add {address} dev {link}",
        f"link set {link} up",
    ):
        done = subprocess.run([ip, *words.split()], capture_output=True, text=True)
        if done.returncode:
            raise DeviceError(f"ip {words}: {done.stderr.strip()}")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody uses now.

    If there is one, none of those that the kernel gives to outgoing connections: a device that is
    switched off wants its own again, and who waits for it there tries it all the time.
    """
    ports = range(_LEAST_PORT, _first_outgoing())
    for port in [*random.SystemRandom().sample(ports, min(_TRIES, len(ports))), 0]:
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return int(listener.getsockname()[1])
    raise DeviceError("No TCP port of this machine is free.")


def _first_outgoing() -> int:
    try:
        return int(_OUTGOING.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 32768


def greets(host: str, port: int, timeout_s: float) -> bool:
    """Whether an SSH server says there what it is."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s) as wire:
            wire.settimeout(timeout_s)
            return wire.recv(4) == b"SSH-"
    except OSError:
        return False
