"""The process that deploys and that the campaign cuts: push, health check, switch, over SSH.

It takes a JSON document as its argument, says on stdout which step begins (``step NAME``), and at
the end what it sent (a JSON object). The exit codes are edgekit's.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.targets.base import Completed, Transport
from edgekit.targets.device import connect
from edgekit.types import Target


@dataclass
class Telling:
    """A transport that tells what it is about to do, and counts what it sends."""

    inner: Transport
    tell: Callable[[str], None]
    sent_bytes: int = 0
    sent_files: set[str] = field(default_factory=set)

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        request = json.loads(stdin) if stdin.startswith(b'{"schema"') else {}
        self.tell(str(request.get("op", "other")))
        return self.inner.run(argv, stdin=stdin, timeout_s=timeout_s, on_line=on_line)

    def put(
        self,
        local: Path,
        remote: str,
        on_bytes: Callable[[int], None] | None = None,
        *,
        keep: int = 0,
    ) -> None:
        self.tell("put")
        self.sent_files.add(remote.rpartition("/")[2])

        def count(sent: int) -> None:
            self.sent_bytes += sent
            if on_bytes is not None:
                on_bytes(sent)

        self.inner.put(local, remote, count, keep=keep)

    def get(self, remote: str, local: Path, max_bytes: int) -> None:
        self.tell("get")
        self.inner.get(remote, local, max_bytes)

    def close(self) -> None:
        self.inner.close()


def deploy(
    bundle: Bundle, artifact: str, target: Target, tell: Callable[[str], None], *, gc: bool
) -> Telling:
    """One deploy as `edgekit deploy` does it, but for the measurement."""
    tell("connect")
    with connect(target) as device:
        telling = Telling(device.channel.transport, tell)
        device.channel = replace(device.channel, transport=telling)
        device.activate(bundle, artifact, 1)
        if gc:
            device.gc()
    return telling


def main(arguments: Sequence[str]) -> int:
    given = json.loads(arguments[0])
    target = Target(**given["target"])
    lock = threading.Lock()
    codes: list[int] = []
    sent: list[Telling] = []

    def tell(step: str) -> None:
        with lock:
            print("step", step, flush=True)

    def one() -> None:
        try:
            sent.append(deploy(bundle, given["artifact"], target, tell, gc=given["gc"]))
            codes.append(0)
        except EdgekitError as error:
            with lock:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            codes.append(error.exit_code)

    with Bundle.open(given["bundle"]) as bundle:
        many = [threading.Thread(target=one) for _ in range(given.get("threads", 1) - 1)]
        for thread in many:
            thread.start()
        one()
        for thread in many:
            thread.join()
    result: dict[str, Any] = {
        "sent_bytes": sum(one.sent_bytes for one in sent),
        "sent_files": sorted(set().union(*(one.sent_files for one in sent))),
        "deploys": codes.count(0),
    }
    print(json.dumps(result), flush=True)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
