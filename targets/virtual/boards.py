"""What can be emulated: boards, and the systems that run on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from edgekit.errors import UsageError
from edgekit.suggest import did_you_mean

#: ``user``: programs are emulated, on this machine's kernel. ``vm``: a whole machine is.
Kind = Literal["user", "vm"]
KINDS: tuple[Kind, ...] = ("user", "vm")


@dataclass(frozen=True, slots=True)
class Board:
    """A board as programs on it see it.

    Attributes:
        name: as on the command line.
        profile: the device profile that it fits.
        model: what its device tree calls it.
        compatible: ``vendor,name`` entries of its device tree, most special first.
        qemu_cpu: QEMU's name of its cores.
        cores: how many.
        memory_mb: of a whole machine.
        features: as its kernel lists them.
        part: the cores' CPU part number.
        revision: the cores' revision.
    """

    name: str
    profile: str
    model: str
    compatible: tuple[str, ...]
    qemu_cpu: str
    cores: int
    memory_mb: int
    features: str
    part: int
    revision: int

    @property
    def cpuinfo(self) -> str:
        """Its /proc/cpuinfo, which libraries choose their code by."""
        core = (
            "processor\t: {index}\n"
            "BogoMIPS\t: 108.00\n"
            f"Features\t: {self.features}\n"
            "CPU implementer\t: 0x41\n"
            "CPU architecture: 8\n"
            "CPU variant\t: 0x0\n"
            f"CPU part\t: {self.part:#05x}\n"
            f"CPU revision\t: {self.revision}\n\n"
        )
        text = "".join(core.replace("{index}", str(index)) for index in range(self.cores))
        return f"{text}Model\t\t: {self.model}\n"


@dataclass(frozen=True, slots=True)
class System:
    """A release of Debian, which Raspberry Pi OS of the same name is made of.

    ``mirror`` serves it; ``packages`` are what a device has, beside what they depend on;
    ``kernel`` is the package that depends on its newest kernel.
    """

    name: str
    label: str
    mirror: str
    packages: tuple[str, ...]
    kernel: str


BOARDS: Mapping[str, Board] = {
    board.name: board
    for board in (
        Board(
            name="rpi4",
            profile="rpi4",
            model="Raspberry Pi 4 Model B Rev 1.4",
            compatible=("raspberrypi,4-model-b", "brcm,bcm2711"),
            qemu_cpu="cortex-a72",
            cores=4,
            memory_mb=2048,
            features="fp asimd evtstrm crc32 cpuid",
            part=0xD08,
            revision=3,
        ),
    )
}

#: No package manager: a device gets everything from its host.
_PACKAGES = (
    *("base-files", "base-passwd", "bash", "bsdutils", "coreutils", "dash", "debianutils"),
    *("diffutils", "findutils", "grep", "gzip", "hostname", "iproute2", "libc-bin", "libstdc++6"),
    *("login", "mawk", "mount", "ncurses-base", "openssh-server", "openssh-sftp-server", "passwd"),
    *("procps", "python3", "python3-venv", "sed", "tar", "util-linux", "ca-certificates"),
)
#: A tenth of the modules of linux-image-arm64, and all those of QEMU's virtual board.
_KERNEL = "linux-image-cloud-arm64"
_MIRROR = "http://deb.debian.org/debian"

SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (
        System("bookworm", "Debian 12 (bookworm), Python 3.11", _MIRROR, _PACKAGES, _KERNEL),
        System("trixie", "Debian 13 (trixie), Python 3.13", _MIRROR, _PACKAGES, _KERNEL),
    )
}
DEFAULT_BOARD, DEFAULT_SYSTEM = "rpi4", "bookworm"

T = TypeVar("T")


def board_of(name: str) -> Board:
    """The board of this name. Raises UsageError where there is none."""
    return _pick(BOARDS, name, "board")


def system_of(name: str) -> System:
    """The system of this name. Raises UsageError where there is none."""
    return _pick(SYSTEMS, name, "system")


def device_name(board: str, system: str, kind: Kind) -> str:
    """What a device is called, and its target: ``virtual-rpi4``, ``virtual-rpi4-trixie-vm``."""
    parts = ["virtual", board]
    parts += [system] if system != DEFAULT_SYSTEM else []
    parts += [kind] if kind != "user" else []
    return "-".join(parts)


def start_command(name: str) -> str:
    """The command that starts the device of this name, or that lists those that there are."""
    for board in BOARDS:
        for system in SYSTEMS:
            for kind in KINDS:
                if name == device_name(board, system, kind):
                    words = ["edgekit virtual start", board]
                    words += [f"--os {system}"] if system != DEFAULT_SYSTEM else []
                    words += [f"--kind {kind}"] if kind != "user" else []
                    return " ".join(words)
    return "edgekit virtual list"


def _pick(table: Mapping[str, T], name: str, what: str) -> T:
    if name not in table:
        raise UsageError(
            f"There is no emulated {what} {name!r}.",
            remedy=f"{did_you_mean(name, table)} Known: {', '.join(table)}.".strip(),
        )
    return table[name]
