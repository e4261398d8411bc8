"""``python -m edgekit.targets.virtual.image FOLDER``: an emulated device's files, for an image.

Used by docker/device.Dockerfile. The image has no key: each container makes its host key when it
starts, and lets in the public key that it is given.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.progress import Quiet
from edgekit.targets.virtual.boards import BOARDS, SYSTEMS, board_of, system_of
from edgekit.targets.virtual.layout import HOST_KEY, INIT, USER, USER_ID, write_files
from edgekit.targets.virtual.rootfs import rootfs

START = "usr/local/sbin/device-start"
_START = f"""\
#!/bin/sh
# The first process of a container: makes its host key, lets AUTHORIZED_KEY in, and goes on.
set -eu
if [ -z "${{AUTHORIZED_KEY:-}}" ]; then
    echo 'Who may log in? docker run -e AUTHORIZED_KEY="$(cat ~/.ssh/id_ed25519.pub)" ...' >&2
    exit 2
fi
[ -e /{HOST_KEY} ] || ssh-keygen -q -t ed25519 -N '' -f /{HOST_KEY}
for home in /root /home/{USER}; do
    printf '%s\\n' "$AUTHORIZED_KEY" >"$home/.ssh/authorized_keys"
done
chown {USER_ID}:{USER_ID} /home/{USER}/.ssh/authorized_keys
echo "Host key: $(ssh-keygen -lf /{HOST_KEY}.pub)"
exec /{INIT}
"""


def write_image(folder: Path, board: str, system: str, mirror: str) -> None:
    """Fills ``folder``, which must not exist, with the files of a device; needs root.

    Raises:
        UsageError, DeviceError: as :func:`edgekit.targets.virtual.rootfs.rootfs`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        tar = rootfs(system_of(system), Path(temporary), Quiet(), mirror=mirror)
        folder.mkdir(parents=True)
        command = ["tar", "--extract", "--file", str(tar), "--numeric-owner", "--exclude=./dev/*"]
        subprocess.run([*command, "--directory", str(folder)], check=True)
        files = Path(temporary) / "files"
        write_files(files, f"virtual-{board}", board_of(board), "0.0.0.0")
        (files / START).write_text(_START, encoding="utf-8")
        (files / START).chmod(0o755)
        copy = ["cp", "--recursive", "--no-dereference", "--preserve=mode", f"{files}/."]
        subprocess.run([*copy, str(folder)], check=True)
        subprocess.run(
            ["chown", "-R", f"{USER_ID}:{USER_ID}", str(folder / "home" / USER)], check=True
        )


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(description="The files of an emulated device, for an image.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--board", choices=BOARDS, default="rpi4")
    parser.add_argument("--os", choices=SYSTEMS, default="bookworm")
    parser.add_argument("--mirror", default="")
    args = parser.parse_args(argv)
    try:
        write_image(args.folder, args.board, args.os, args.mirror)
    except EdgekitError as error:
        sys.stderr.write(f"{error.message} {error.remedy}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
