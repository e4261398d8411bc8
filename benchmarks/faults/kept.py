"""The cuts of a campaign that are done, kept so that one that was broken off goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from benchmarks.faults.crowd import Crowd
from benchmarks.faults.cuts import Cut
from edgekit.files import write_atomic
from edgekit.pipeline.workspace import environment


class Kept:
    """One line for each cut in a file of ``folder``, or nothing at all where that is None.

    Args:
        folder: is made.
        parts: what the campaign depends on beside edgekit's own code.
    """

    def __init__(self, folder: Path | None, *parts: object) -> None:
        self.cuts: list[Cut] = []
        self.tries = 0
        self.crowd: Crowd | None = None
        self._file: Path | None = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        key = hashlib.sha256(json.dumps([environment(), *parts]).encode()).hexdigest()
        self._file = folder / f"{key[:16]}.jsonl"
        text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # the rest was cut off
        if whole != text:
            write_atomic(self._file, whole)
        for line in whole.splitlines():
            found = json.loads(line)
            if "cut" in found:
                self.tries = found["tries"]
                self.cuts.append(Cut(**found["cut"]))
            else:
                violations = tuple(found["crowd"].pop("violations"))
                self.crowd = Crowd(**found["crowd"], violations=violations)

    def add(self, cut: Cut, tries: int) -> None:
        """``tries`` are all so far, with those that cut nothing."""
        self.cuts.append(cut)
        self.tries = tries
        self._write({"cut": dataclasses.asdict(cut), "tries": tries})

    def gathered(self, crowd: Crowd) -> Crowd:
        self.crowd = crowd
        self._write({"crowd": dataclasses.asdict(crowd)})
        return crowd

    def _write(self, line: dict[str, object]) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
