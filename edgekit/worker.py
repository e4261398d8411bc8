"""The process that :mod:`edgekit.isolate` starts: reads requests, calls the functions, answers.

A request is a line on stdin. The answer goes to a file because converters print what they like to
stdout and stderr, which are the job's log.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from typing import Any

from edgekit import errors, telling

_PR_SET_PDEATHSIG = 1


def main() -> int:
    # A converter's child that reads its stdin must find nothing, neither wait nor eat a request.
    requests = os.fdopen(os.dup(0), "rb")
    _redirect(os.devnull, os.O_RDONLY, 0)
    for line in requests:
        request = json.loads(line)
        _die_with_parent(request["parent"])
        for output in (1, 2):
            _redirect(request["log"], os.O_WRONLY | os.O_APPEND, output)
        telling.listen(request["told"])
        _answer(request)
    # Frameworks may hang or crash in their own clean-up; the work is done and saved.
    os._exit(0)


def _answer(request: dict[str, Any]) -> None:
    module, _, function = request["entry"].partition(":")
    try:
        answer = {"value": getattr(importlib.import_module(module), function)(request["payload"])}
        text = json.dumps(answer)
    except Exception as error:
        traceback.print_exc()
        text = json.dumps({"error": _describe(error)})
    sys.stdout.flush()
    sys.stderr.flush()
    temporary = request["result"] + ".part"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, request["result"])


def _redirect(path: str, flags: int, descriptor: int) -> None:
    opened = os.open(path, flags)
    os.dup2(opened, descriptor)
    os.close(opened)


def _describe(error: Exception) -> dict[str, Any]:
    described: dict[str, Any] = {
        "class": type(error).__name__,
        "message": str(error).strip().splitlines()[0][:2000] if str(error).strip() else "",
        "remedy": "",
    }
    if isinstance(error, errors.EdgekitError):
        described |= {"message": error.message, "remedy": error.remedy}
    if isinstance(error, errors.MissingExtra):
        described |= {"package": error.package, "extra": error.extra}
    return described


def _die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when the parent dies, however it dies (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
