"""Functions that test_isolate.py runs in worker processes: each ends in another way."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgekit.errors import DataError, MissingExtra, WorkerCrashed
from edgekit.telling import tell


def double(payload: dict[str, Any]) -> dict[str, Any]:
    sys.stdout.write("noise on stdout {not json\n")
    return {"value": payload["value"] * 2, "pid": os.getpid()}


def tells(payload: dict[str, Any]) -> str:
    for text in ("one", "two"):
        tell(text)
        sys.stdout.write("noise that nobody is to hear of\n")
        wait_for(Path(payload["pids"] + text))
    return "done"


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def segfault(payload: dict[str, Any]) -> None:
    sys.stderr.write("about to read address 0\n")
    ctypes.string_at(0)


def illegal_instruction(payload: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGILL)


def killed(payload: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(payload: dict[str, Any]) -> None:
    os._exit(7)


def hang(payload: dict[str, Any]) -> None:
    time.sleep(600)


def hang_with_child(payload: dict[str, Any]) -> None:
    """Start a grandchild, note both pids, and hang."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(payload["pids"]).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(600)


def eat(payload: dict[str, Any]) -> None:
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20)) * 16)
        time.sleep(0.01)


def memory_error(payload: dict[str, Any]) -> None:
    raise MemoryError


def raise_typed(payload: dict[str, Any]) -> None:
    raise DataError("sample 3 holds NaN", remedy="remove it")


def raise_missing(payload: dict[str, Any]) -> None:
    raise MissingExtra("litert_torch", "tflite")


def raise_crash(payload: dict[str, Any]) -> None:
    os.write(1, b"layer7 has no kernel\n")
    raise WorkerCrashed("cannot convert", kind="exception", remedy="leave it out")


def raise_foreign(payload: dict[str, Any]) -> None:
    raise KeyError("layer7")


def unserialisable(payload: dict[str, Any]) -> object:
    return object()
