"""Instructions per inference instead of time: the one cost that an emulator gives exactly.

The same file on the same runtime takes the same number in every run (with the runners in Python to
a few in a thousand), so another number is another amount of work. It is no latency: it does not say
how long an instruction takes or waits for memory.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.errors import DeviceError, MissingExtra, RunnerFailed, UsageError
from edgekit.files import staged_dir
from edgekit.progress import Progress
from edgekit.targets.agent.runner_core import MARK
from edgekit.targets.base import Completed
from edgekit.targets.device import Device
from edgekit.targets.runner import RunnerArguments, RunnerExit, judge, spec
from edgekit.targets.virtual.boards import board_of
from edgekit.targets.virtual.host import require, run_tool
from edgekit.targets.virtual.state import VirtualDevice
from edgekit.types import Artifact

_SOURCE = Path(__file__).resolve().with_name("count.c")
#: Where the counting emulator lies on the device: a program of the host's kind, and its libraries.
_PLACE = "usr/local/lib/edgekit-count"
#: How many runs a process makes. The last ones count; the first allocate what later ones find, and
#: lists grow at the ninth.
RUNS = 14
_LAST = 4
TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True)
class InstructionCount:
    """What one inference of an artifact takes, with one thread.

    Attributes:
        artifact_id: which artifact.
        runtime: of the artifact.
        precision: of the artifact.
        instructions: Arm instructions of one inference in the steady state; None where it failed.
        spread: how much the last runs differed.
        error: why there is no number.
    """

    artifact_id: str
    runtime: str
    precision: str
    instructions: int | None
    spread: int = 0
    error: str = ""


def count_instructions(
    virtual: VirtualDevice,
    device: Device,
    bundle: Bundle,
    artifact_ids: Sequence[str],
    progress: Progress,
) -> list[InstructionCount]:
    """Counts the instructions of one inference for each artifact, on zeros, with one thread.

    Args:
        virtual: the emulated device, whose programs are emulated one by one.
        device: the same, connected.
        bundle: where the artifacts are.
        artifact_ids: which.
        progress: advances by artifacts.

    Raises:
        UsageError: it is a whole machine, or this machine lacks a compiler or the emulator.
        DeviceError, LinkLost: the device cannot be used.
    """
    if virtual.kind != "user":
        raise UsageError(
            f"{virtual.name} is a whole machine, where the system's instructions cannot be told "
            "from the model's.",
            remedy="edgekit virtual start rpi4, and --target virtual-rpi4",
        )
    _install(virtual)
    device.push(bundle, artifact_ids, progress=progress)
    found = []
    with progress.stage("Count instructions", len(artifact_ids)) as stage:
        for artifact in map(bundle.artifact, artifact_ids):
            found.append(_count(virtual, device, artifact))
            stage.advance(note=artifact.id)
    return found


def _count(virtual: VirtualDevice, device: Device, artifact: Artifact) -> InstructionCount:
    what = (artifact.id, artifact.runtime, artifact.precision)
    try:
        last = sorted(inferences(_notes(virtual, device, artifact)))
    except (RunnerFailed, MissingExtra) as error:
        return InstructionCount(*what, None, error=error.message)
    return InstructionCount(*what, last[0], spread=last[-1] - last[0])


def _notes(virtual: VirtualDevice, device: Device, artifact: Artifact) -> list[int]:
    """The count before and after each of a runner's timed runs."""
    channel, transport = device.channel, device.channel.transport
    sha256 = artifact.sha256
    arguments = RunnerArguments(
        model=f"{channel.root}/store/sha256/{sha256[:2]}/{sha256}",
        threads=1,
        samples=0,
        specs=tuple(spec(one.dtype, one.shape) for one in artifact.inputs),
        budget_s=1e-6,  # over at once, so that the number of runs decides
        min_runs=RUNS,
        max_runs=RUNS,
    )
    runtime = device.runtime(artifact.runtime)
    python = _said(transport.run(["readlink", "-f", "/usr/bin/python3"], timeout_s=60))
    command = runtime.command(f"{channel.root}/runtimes/{runtime.folder}", python)
    # Instead of -E: the environment is our own, and it makes Python hash in the same way always.
    command = [word for word in command if word != "-E"]
    notes = f"/tmp/count-{secrets.token_hex(8)}"
    emulator = f"/{_PLACE}"
    ended = transport.run(
        [
            *("env", "-i", "HOME=/tmp", "PATH=/usr/bin:/bin", "PYTHONHASHSEED=0"),
            *("OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1", f"{MARK}=1"),
            *("setarch", "--addr-no-randomize"),
            *(f"{emulator}/loader", "--library-path", emulator, f"{emulator}/qemu-aarch64"),
            *("-cpu", board_of(virtual.board).qemu_cpu, "-seed", "1"),
            *("-plugin", f"{emulator}/count.so,out={notes}", *command, *arguments.argv()),
        ],
        timeout_s=TIMEOUT_S,
    )
    stdout, stderr = (text.decode("utf-8", "replace") for text in (ended.stdout, ended.stderr))
    judge(RunnerExit(ended.returncode, stdout, stderr), what=artifact.id)
    text = _said(transport.run(["cat", notes], timeout_s=60))
    transport.run(["rm", "-f", notes], timeout_s=60)
    return [int(line) for line in text.split() if re.fullmatch(r"\d{1,18}", line)]


def inferences(notes: Sequence[int]) -> list[int]:
    """The instructions of each of the last runs, with the few of the loop between two.

    Args:
        notes: the count before each of :data:`RUNS` runs and after the last.

    Raises:
        DeviceError: there are more or fewer.
    """
    if len(notes) != RUNS + 1:
        raise DeviceError(
            f"The counting emulator saw {len(notes)} marks, and the runner makes {RUNS + 1}."
        )
    # Not the very last: the loop ends behind it, and goes on behind the others.
    return [after - before for before, after in itertools.pairwise(notes[-_LAST - 2 : -1])]


def _said(done: Completed) -> str:
    if done.returncode:
        raise DeviceError(f"The device refused: {done.stderr.decode('utf-8', 'replace').strip()}")
    return done.stdout.decode("utf-8", "replace").strip()


def _install(virtual: VirtualDevice) -> None:
    """Puts the counting emulator into the device, with the libraries and the plugin that it needs.

    The one that runs the device is linked statically, and so cannot load a plugin.
    """
    folder = virtual.folder / "root" / _PLACE
    if folder.is_dir():
        return
    tools = require("qemu-aarch64", "gcc", "ldd")
    emulator = tools["qemu-aarch64"]
    said = run_tool([emulator, "--version"], what="Asking QEMU for its version")
    found = re.search(r"version (\d+)", said)
    # QEMU 9 refuses plugins that were written for version 1 of its interface; no call differs here.
    version = 2 if found and int(found[1]) >= 9 else 1
    try:
        libraries = run_tool([tools["ldd"], emulator], what="Looking for QEMU's libraries")
    except DeviceError as error:
        raise UsageError(
            f"{emulator} is linked statically and cannot count.",
            remedy="sudo apt-get install qemu-user",
        ) from error
    with staged_dir(folder) as staging:
        build = [tools["gcc"], "-O2", "-fPIC", "-shared", f"-DPLUGIN_VERSION={version}"]
        build += [str(_SOURCE), "-o", str(staging / "count.so")]
        run_tool(build, what="Compiling the counting plugin")
        shutil.copy(emulator, staging / "qemu-aarch64")
        for path in re.findall(r"(/\S+) \(0x", libraries):
            loader = os.path.basename(path).startswith("ld-")
            shutil.copy(path, staging / ("loader" if loader else os.path.basename(path)))
        for path in staging.iterdir():
            path.chmod(0o755)
        staging.chmod(0o755)
