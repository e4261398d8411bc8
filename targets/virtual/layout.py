"""What lies on a device beside its packages: users, keys, the SSH server's configuration, its init.

The host writes these files into a folder, which is then copied over the unpacked packages.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from edgekit.targets.virtual.boards import Board
from edgekit.targets.virtual.host import require, run_tool
from edgekit.targets.virtual.state import VirtualDevice

USER, USER_ID = "pi", 1000
#: Packages ask for numbers below 1000; sshd insists on a user of this name.
_PASSWD = f"""\
root:x:0:0:root:/root:/bin/bash
sshd:x:101:65534::/run/sshd:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
{USER}:x:{USER_ID}:{USER_ID}::/home/{USER}:/bin/bash
"""
_GROUP = f"""\
root:x:0:
tty:x:5:
shadow:x:42:
nogroup:x:65534:
{USER}:x:{USER_ID}:
"""
_FOLDERS = ("media", "mnt", "opt", "srv", "usr/bin", "usr/local/bin", "var/log", "var/tmp")
# An asterisk is no password, but no locked account either: keys let in.
_SHADOW = f"root:*:19000::::::\n{USER}:*:19000::::::\n"

_SSHD_CONFIG = """\
ListenAddress {listen}
HostKey /etc/ssh/ssh_host_ed25519_key
AllowUsers {user} root
AuthenticationMethods publickey
PermitRootLogin prohibit-password
UsePAM no
UseDNS no
PrintMotd no
PidFile none
Subsystem sftp internal-sftp
SetEnv QEMU_CPU={cpu}
"""

# sshd is started again when it dies, as a system's service manager does.
_INIT = """\
#!/bin/sh
# The first process of the device.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir -p -m 755 /run/sshd
while :; do
    /usr/sbin/sshd -D -e
    sleep 1
done
"""
INIT = "usr/local/sbin/device-init"
HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
HOMES = ("root", f"home/{USER}")


def make_keys(device: VirtualDevice) -> None:
    """A new key pair to log in with, and a new host key that this device alone is known by.

    Raises:
        UsageError: there is no ssh-keygen.
    """
    tool = require("ssh-keygen")["ssh-keygen"]
    for name in ("identity", "host_key"):
        path = device.folder / name
        path.unlink(missing_ok=True)
        command = [tool, "-q", "-t", "ed25519", "-N", "", "-C", device.name, "-f", str(path)]
        run_tool(command, what="Making a key")
    host = device.host if device.port == 22 else f"[{device.host}]:{device.port}"
    key = " ".join((device.folder / "host_key.pub").read_text().split()[:2])
    device.known_hosts.write_text(f"{host} {key}\n")


def lay(device: VirtualDevice, board: Board, listen: str) -> Path:
    """Writes all files of a device into its folder ``files``; returns it.

    ``listen`` is what its SSH server listens on: an address, or ``address:port``.
    """
    root = device.folder / "files"
    shutil.rmtree(root, ignore_errors=True)
    write_files(root, device.name, board, listen)
    _write(root / HOST_KEY, (device.folder / "host_key").read_text(), 0o600)
    for home in HOMES:
        allowed = (device.folder / "identity.pub").read_text()
        _write(root / home / ".ssh/authorized_keys", allowed, 0o600)
    return root


def write_files(root: Path, name: str, board: Board, listen: str) -> None:
    """Writes everything but keys below ``root``.

    ``name`` is what the device calls itself; ``listen`` as in :func:`lay`.
    """
    config = _SSHD_CONFIG.format(listen=listen, user=USER, cpu=board.qemu_cpu)
    texts = {
        "etc/passwd": (_PASSWD, 0o644),
        "etc/group": (_GROUP, 0o644),
        "etc/shadow": (_SHADOW, 0o640),
        "etc/hostname": (f"{name}\n", 0o644),
        "etc/hosts": (f"127.0.0.1 localhost\n127.0.1.1 {name}\n", 0o644),
        "etc/ssh/sshd_config": (config, 0o644),
        INIT: (_INIT, 0o755),
    }
    for path, (text, mode) in texts.items():
        _write(root / path, text, mode)
    for home in HOMES:
        (root / home / ".ssh").mkdir(parents=True)
        (root / home).chmod(0o700)
        (root / home / ".ssh").chmod(0o700)
    for folder in _FOLDERS:
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "usr/bin/awk").symlink_to("mawk")


def _write(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
