"""How fast files go to a device and back over SSH: edgekit's transport against ``scp``.

Both talk to the same OpenSSH server on 127.0.0.1, with the defaults of both sides, connecting anew
for each copy; the order is drawn anew in each round. Loopback has no link to wait for: what is
compared is how fast each side can be at all, in both programs bounded by the processor.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import sshd
from benchmarks.common import Bar, Report, argument_parser, conditions, finish, run_to_end
from edgekit.targets.ssh import SshTransport
from edgekit.types import Target

MAX_OF_SCP = 1 / 0.7
ROUNDS, QUICK_ROUNDS = 7, 1
SIZE_MB, QUICK_SIZE_MB = 200, 8
TIMEOUT_S = 300.0

Copy = Callable[[Path, Path], None]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser("transfer", __doc__.splitlines()[0])
    options = parser.parse_args(arguments)
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    size = (QUICK_SIZE_MB if options.quick else SIZE_MB) * 1_000_000
    before = conditions("edgekit", "paramiko", "cryptography")
    before["ssh"] = subprocess.run(["ssh", "-V"], capture_output=True, text=True).stderr.strip()
    with tempfile.TemporaryDirectory(prefix="edgekit-transfer-") as name:
        folder = Path(name)
        server = sshd.start(folder / "sshd")
        try:
            # The server's key is known in a home of our own, so that the user's stays as it is.
            (folder / ".ssh").mkdir(mode=0o700)
            (folder / ".ssh" / "known_hosts").write_text(server.known_hosts_line)
            os.environ["HOME"] = name
            seconds = measure(copies(server, folder), folder, size, rounds, options.seed)
        finally:
            server.stop()
    return finish(
        evaluate(seconds, size, before, options.seed), as_json=options.json, quick=options.quick
    )


def copies(server: sshd.Server, folder: Path) -> Mapping[str, Copy]:
    """What is compared: name -> copies one file to another path."""
    scp = [
        "scp", "-q", "-F", "none", "-i", str(server.identity), "-P", str(server.port),
        "-o", f"UserKnownHostsFile={folder / '.ssh' / 'known_hosts'}", "-o", "BatchMode=yes",
    ]  # fmt: skip
    there = f"{server.user}@127.0.0.1:"
    target = Target(
        "transfer",
        "ssh",
        server.address,
        options={"identity": str(server.identity), "python": sys.executable},
    )

    def scp_put(source: Path, sink: Path) -> None:
        run_to_end([*scp, str(source), f"{there}{sink}"], timeout_s=TIMEOUT_S)

    def scp_get(source: Path, sink: Path) -> None:
        run_to_end([*scp, f"{there}{source}", str(sink)], timeout_s=TIMEOUT_S)

    def put(source: Path, sink: Path) -> None:
        transport = SshTransport(target)
        transport.put(source, str(sink))
        transport.close()

    def get(source: Path, sink: Path) -> None:
        transport = SshTransport(target)
        transport.get(str(source), sink, source.stat().st_size)
        transport.close()

    return {"scp put": scp_put, "edgekit put": put, "scp get": scp_get, "edgekit get": get}


def measure(
    copies: Mapping[str, Copy], folder: Path, size: int, rounds: int, seed: int
) -> dict[str, list[float]]:
    """Seconds of each copy, one per round, after one round that fills the caches.

    Raises:
        RuntimeError: a copy is not the same as its source.
    """
    source, sink = folder / "source", folder / "sink"
    source.write_bytes(os.urandom(size))
    rng = random.Random(seed)
    order = list(copies)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(rounds + 1):
        rng.shuffle(order)
        for name in order:
            sink.unlink(missing_ok=True)
            started = time.perf_counter()
            copies[name](source, sink)
            taken = time.perf_counter() - started
            if turn == 0 and sink.read_bytes() != source.read_bytes():
                raise RuntimeError(f"{name}: the copy is not the same as its source.")
            if turn > 0:
                seconds[name].append(taken)
    return seconds


def evaluate(
    seconds: Mapping[str, Sequence[float]], size: int, before: Mapping[str, str], seed: int
) -> Report:
    """The table and the bars; pure."""
    p50 = {name: statistics.median(values) for name, values in seconds.items()}
    return Report(
        name="transfer",
        columns=("copy", "p50", "rate"),
        rows=[
            (name, f"{value:.3f} s", f"{size / value / 1e6:.0f} MB/s")
            for name, value in p50.items()
        ],
        bars=[
            Bar(
                f"time of edgekit's {way} over scp's (0.7 of its rate)",
                p50[f"edgekit {way}"] / p50[f"scp {way}"],
                round(MAX_OF_SCP, 3),
            )
            for way in ("put", "get")
        ],
        notes=[f"{size / 1e6:.0f} MB of random bytes; seed {seed}; connecting is part of a copy"],
        conditions=before,
        samples={f"{name} [s]": list(values) for name, values in seconds.items()},
    )


if __name__ == "__main__":
    sys.exit(main())
