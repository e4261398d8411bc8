"""The process that :mod:`edgekit.isolate` starts: reads one request, calls the function, answers.

The answer goes to a file because converters print what they like to stdout and stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from typing import Any

from edgekit import errors

_PR_SET_PDEATHSIG = 1


def main() -> int:
    request = json.loads(sys.stdin.buffer.read())
    _die_with_parent(request["parent"])
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
    # Frameworks may hang or crash in their own clean-up; the work is done and saved.
    os._exit(0)


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
