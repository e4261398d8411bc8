"""``python -m edgekit.targets.lock_wheels``: writes wheels.json, the files that wheels.toml means.

Asks the package index, by pip's own resolver, which file it would take for each package, Python and
architecture, and notes name, size and hash. For those who change wheels.toml.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from edgekit.targets.abi import Abi
from edgekit.targets.wheels import LOCK, WheelSet, table

#: The newest that any supported profile has; pip takes what needs less as well.
NEWEST_GLIBC = "2.34"


def resolve(row: WheelSet, arch: str, python: str) -> list[dict[str, Any]]:
    """The files of a set for one architecture and Python."""
    platforms = Abi(arch, python, NEWEST_GLIBC).platforms
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
            "--no-deps", "--only-binary=:all:", "--python-version", python, "--target", folder,
            *(word for name in platforms for word in ("--platform", name)),
            "--report", str(report), *row.packages,
        ]  # fmt: skip
        env = {**os.environ, "PIP_CONSTRAINT": os.devnull}
        subprocess.run(command, check=True, env=env)
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    wheels = []
    for item in items:
        url = item["download_info"]["url"]
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
            size = int(answer.headers["Content-Length"])
        (package,) = [
            p for p in row.packages if p.partition("==")[0] == _normal(item["metadata"]["name"])
        ]
        wheels.append(
            {
                "package": package,
                "filename": url.rsplit("/", 1)[1].replace("%2B", "+"),
                "sha256": item["download_info"]["archive_info"]["hashes"]["sha256"],
                "size_bytes": size,
            }
        )
    return wheels


def _normal(name: str) -> str:
    return name.lower() if name != "typing_extensions" else name


def main() -> None:
    """Writes the file anew."""
    found = {
        wheel["filename"]: wheel
        for row in table()
        for arch in row.arch
        for python in row.python
        for wheel in resolve(row, arch, python)
    }
    rows = [json.dumps(found[name]) for name in sorted(found)]
    LOCK.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
