"""What tests of SSH need beside a server: a home, targets, and links that go bad."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from pathlib import Path

from benchmarks.sshd import Server
from edgekit.types import Target


def target_of(server: Server, *, port: int = 0, name: str = "board", **options: str) -> Target:
    """A target that reaches a server, with the Python that runs the tests."""
    options = {"python": sys.executable, "identity": str(server.identity), **options}
    address = f"ssh://{server.user}@127.0.0.1:{port or server.port}"
    return Target(name, "ssh", address, options={k: v for k, v in options.items() if v})


def logins(server: Server) -> int:
    """How many connections a server has let in so far."""
    return (server.folder / "log").read_text().count("Accepted publickey")


class Proxy:
    """Passes TCP connections on to a server on 127.0.0.1, and makes the link bad when told.

    Attributes:
        port: to connect to.
        opened: connections so far.
        passed: bytes that went to the server so far.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.opened = 0
        self.passed = 0
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._cut_at: list[int] = []
        self._refuse = 0
        self._frozen = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def cut_after(self, *sent: int) -> None:
        """Reset all connections when so many bytes have gone to the server; once for each."""
        self._cut_at = sorted(sent)

    def drop_next(self, count: int) -> None:
        """Hang up on the next connections at once."""
        self._refuse = count

    def freeze(self) -> None:
        """Pass nothing on any more, and do not say so."""
        self._frozen.set()

    def cut(self) -> None:
        """Reset all connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    # Linger 0: what is under way is thrown away, the other side sees a reset.
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    end.shutdown(socket.SHUT_RDWR)
                    end.close()

    def refuse(self) -> None:
        """Take no new connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # closing alone does not wake accept()
        self._listener.close()

    def close(self) -> None:
        self.refuse()
        self.cut()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.opened += 1
                if self._refuse > 0:
                    self._refuse -= 1
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._server_port))
                with self._lock:
                    self._pairs.append((client, server))
                for source, sink, counted in ((client, server, True), (server, client, False)):
                    threading.Thread(
                        target=self._pump, args=(source, sink, counted), daemon=True
                    ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self._frozen.is_set():
                    return  # open, and never read again
                if counted:
                    self.passed += len(data)
                    if self._cut_at and self.passed >= self._cut_at[0]:
                        self._cut_at.pop(0)
                        self.cut()
                        return
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """A port whose queue is full: the kernel drops every further attempt without a word."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    waiting = []
    for _ in range(4):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(listener.getsockname())
        waiting.append(client)
    return listener, waiting


def write_config(home: Path, text: str) -> None:
    (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
    (home / ".ssh" / "config").write_text(text)
