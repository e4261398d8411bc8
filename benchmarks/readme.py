"""Renews the outputs that README.md shows, by running what it says was run.

python -m benchmarks.readme            run the demo and its API example, write README.md
python -m benchmarks.readme --check    only say whether the README shows the example's own text
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
EXAMPLE = ROOT / "examples" / "efficientnet_lite0"
#: The width that the tables are made for.
COLUMNS = "100"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    text = README.read_text(encoding="utf-8")
    code = (EXAMPLE / "api.py").read_text(encoding="utf-8").partition('"""\n\n')[2]
    renewed = replace_block(text, "api-code", f"```python\n{code}```")
    if parser.parse_args(arguments).check:
        return 0 if renewed == text else 1
    printed = _output(["-m", "edgekit", "run", "--fresh", "-q"])
    renewed = replace_block(renewed, "run", f"```\n$ edgekit run\n{printed}```")
    printed = _output(["api.py"])
    renewed = replace_block(renewed, "api-output", f"```\n{printed}```")
    README.write_text(renewed, encoding="utf-8")
    return 0


def replace_block(text: str, name: str, content: str) -> str:
    """Put ``content`` between the comments ``NAME:begin`` and ``NAME:end``.

    Raises:
        ValueError: the text does not have that pair exactly once.
    """
    pattern = re.compile(rf"(<!-- {name}:begin[^>]*-->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    renewed, count = pattern.subn(lambda found: f"{found[1]}{content}\n{found[2]}", text)
    if count != 1:
        raise ValueError(f"README.md has {count} blocks called {name}.")
    return renewed


def _output(arguments: list[str]) -> str:
    """What a Python program prints in the example's folder, without this machine's paths."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=EXAMPLE,
        env={**os.environ, "COLUMNS": COLUMNS},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    lines = done.stdout.replace(f"{EXAMPLE}/", "").splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
