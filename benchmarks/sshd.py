"""A real OpenSSH server of one's own on 127.0.0.1: with its own keys, port and configuration."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

START_S = 10.0


def program() -> str | None:
    """The sshd of this machine; sbin is often not on a user's PATH."""
    return shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def make_key(path: Path, *, kind: str = "ed25519", passphrase: str = "") -> Path:
    """A new key pair: ``path`` and ``path.pub``."""
    path.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", path.name, "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


@dataclass
class Server:
    """A running sshd that lets the current user in with ``identity``.

    Attributes:
        folder: holds its configuration, keys and log.
        port: on 127.0.0.1.
        identity: the private key that it accepts.
        process: the listener; each connection has processes of its own.
    """

    folder: Path
    port: int
    identity: Path
    process: subprocess.Popen[bytes]

    @property
    def user(self) -> str:
        return getpass.getuser()

    @property
    def address(self) -> str:
        return f"ssh://{self.user}@127.0.0.1:{self.port}"

    @property
    def host_key(self) -> str:
        """Type and key, as in known_hosts."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    @property
    def known_hosts_line(self) -> str:
        return f"[127.0.0.1]:{self.port} {self.host_key}\n"

    def accept(self, public_key: Path) -> None:
        """Lets one more key in."""
        with open(self.folder / "authorized_keys", "a") as file:
            file.write(public_key.read_text())

    def sessions(self) -> list[psutil.Process]:
        """The processes of sshd that serve the connections that there are now."""
        return [
            process
            for process in psutil.Process(self.process.pid).children(recursive=True)
            if _is_sshd(process)
        ]

    def kill_sessions(self) -> None:
        """Cuts all connections as a crash of sshd's processes would; the listener stays."""
        for process in self.sessions():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def stop(self) -> None:
        """Ends the server and its connections; what they run is left to notice."""
        if self.process.poll() is None:
            self.kill_sessions()
            self.process.kill()
        self.process.wait()


def start(
    folder: Path, *, port: int = 0, host_key: str = "ed25519", options: Mapping[str, str] = {}
) -> Server:
    """Starts an sshd; ``folder`` may hold the keys of an earlier one, which are then kept.

    Raises:
        RuntimeError: there is no sshd here, or it does not start; says what its log says.
    """
    sshd = program()
    if sshd is None:
        raise RuntimeError("There is no sshd here: install openssh-server.")
    port = port or free_port()
    config = configure(folder, f"127.0.0.1:{port}", host_key=host_key, options=options)
    log = folder / "log"
    log.unlink(missing_ok=True)
    process = subprocess.Popen(
        [sshd, "-D", "-f", str(config), "-E", str(log)],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return Server(folder, port, folder / "identity", process)
        time.sleep(0.02)
    process.kill()
    process.wait()
    raise RuntimeError(f"sshd did not start: {log.read_text() if log.exists() else 'no log'}")


def configure(
    folder: Path, listen: str, *, host_key: str = "ed25519", options: Mapping[str, str] = {}
) -> Path:
    """Keys and a configuration in ``folder`` for a server that listens on an address and port;
    returns the configuration's path."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # it insists; packages make it at boot
    if not (folder / "host_key").exists():
        make_key(folder / "host_key", kind=host_key)
    if not (folder / "identity").exists():
        make_key(folder / "identity")
        shutil.copy(folder / "identity.pub", folder / "authorized_keys")
    settings = {
        "ListenAddress": listen,
        "HostKey": str(folder / "host_key"),
        "AuthorizedKeysFile": str(folder / "authorized_keys"),
        "PidFile": "none",
        "StrictModes": "no",  # folders of tests lie below /tmp, which everybody may write to
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "Subsystem": "sftp internal-sftp",
        "LogLevel": "VERBOSE",
        # bash reads .bashrc for sshd, but only on the first level: what is there is not measured.
        "SetEnv": "SHLVL=2",
        **options,
    }
    config = folder / "sshd_config"
    config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    return config


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_sshd(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name().startswith("sshd")
    return False
