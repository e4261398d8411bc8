"""DeviceFacts: the agent reads files and asks the system; pure parsers here make sense of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edgekit.codec import MAX_INTEGER
from edgekit.targets.answer import printable
from edgekit.types import DeviceFacts

_ARM = ("aarch64", "arm")
_X86_FLAGS = re.compile(r"^flags\s*:", re.MULTILINE)
#: What int() takes, floats hold and records keep, whatever a device says: no "²", no 5000 digits.
_NUMBER = r"[0-9]{1,12}"


def parse_facts(raw: Mapping[str, Any]) -> DeviceFacts:
    """The agent's raw facts as DeviceFacts; what is absent or odd becomes None or empty."""
    files = {
        str(path): printable(text)
        for path, text in _mapping(raw.get("files")).items()
        if isinstance(text, str)
    }
    uname = _mapping(raw.get("uname"))
    arch = _arch(_text(uname.get("machine")), raw.get("bits"))
    cpuinfo = files.get("/proc/cpuinfo", "")
    return DeviceFacts(
        model=_model(files),
        arch=arch,
        os=parse_os_release(files.get("/etc/os-release", "")),
        kernel=_text(uname.get("release")),
        libc=_text(raw.get("libc")).strip(),
        python=_text(raw.get("python")),
        cpu_features=parse_cpu_features(cpuinfo),
        cpu_count=_int(raw.get("cpu_count"), 1),
        governor=_common(_matching(files, "scaling_governor")),
        freq_khz=tuple(
            int(text)
            for text in _matching(files, "scaling_cur_freq")
            if re.fullmatch(_NUMBER, text)
        ),
        temp_c=parse_temperature(files),
        throttled=parse_throttled(
            "".join(text for path, text in files.items() if path.endswith("/get_throttled"))
            or _text(raw.get("vcgencmd"))
        ),
        mem_total_bytes=parse_mem_total(files.get("/proc/meminfo", "")),
        disk_free_bytes=_int(raw.get("disk_free_bytes"), 0),
        emulated=is_emulated(files, arch, _text(raw.get("qemu_cpu"))),
        soc=parse_soc(_device_tree(files, "compatible")),
    )


def parse_os_release(text: str) -> str:
    """PRETTY_NAME of /etc/os-release, e.g. ``Debian GNU/Linux 12 (bookworm)``."""
    match = re.search(r"^PRETTY_NAME=(.*)$", text, re.MULTILINE)
    return match.group(1).strip().strip("\"'") if match else ""


def parse_soc(compatible: str) -> str:
    """The chip of a board with a device tree: the last, most general of its NUL-separated
    ``vendor,name`` entries, without the vendor; empty where there is none, as on PCs."""
    entries = [entry for entry in compatible.strip("\n").split("\0") if entry]
    return entries[-1].rpartition(",")[2] if entries else ""


def parse_cpu_features(cpuinfo: str) -> tuple[str, ...]:
    """The features that *every* core has, sorted (``Features`` on ARM, ``flags`` on x86)."""
    lines = re.findall(r"^(?:Features|flags)\s*:(.*)$", cpuinfo, re.MULTILINE)
    if not lines:
        return ()
    return tuple(sorted(set.intersection(*(set(line.split()) for line in lines))))


def parse_mem_total(meminfo: str) -> int:
    """MemTotal of /proc/meminfo in bytes; 0 where it is absent."""
    match = re.search(rf"^MemTotal:\s+({_NUMBER}) kB$", meminfo, re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0


def parse_throttled(text: str) -> int | None:
    """The Raspberry Pi firmware's flags, from sysfs (``50005``, hexadecimal) or from vcgencmd
    (``throttled=0x50005``). Bits 0-3: now under-voltage, capped, throttled, soft limit; bits
    16-19: the same at some time since boot."""
    match = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})", text.strip())
    return int(match.group(1), 16) if match else None


def parse_temperature(files: Mapping[str, str]) -> float | None:
    """The CPU's thermal zone in degrees Celsius, else the hottest of all zones."""
    zones = {}
    for path, text in files.items():
        match = re.search(r"/(thermal_zone\d+)/temp$", path)
        if match and re.fullmatch("-?" + _NUMBER, text.strip()):
            kind = files.get(path.removesuffix("temp") + "type", "").strip()
            zones[kind or match.group(1)] = int(text) / 1000
    cpu = [celsius for kind, celsius in zones.items() if "cpu" in kind or "x86_pkg" in kind]
    return max(cpu or zones.values(), default=None)


def is_emulated(files: Mapping[str, str], arch: str, qemu_cpu: str) -> bool:
    """Whether an emulator executes the instructions, so that times mean nothing.

    qemu-user: the kernel's own architecture, or the CPU that it describes, is another one.
    A virtual board: no such hardware is sold. A VM on real cores of its own architecture is none.
    """
    kernel = files.get("/proc/sys/kernel/arch", "").strip()
    board = _device_tree(files, "compatible")
    cpuinfo = files.get("/proc/cpuinfo", "")
    return (
        bool(qemu_cpu)
        or (bool(kernel) and kernel.startswith(_ARM) != arch.startswith(_ARM))
        or (arch.startswith(_ARM) and bool(_X86_FLAGS.search(cpuinfo)))
        or "dummy-virt" in board
        or "QEMU TCG" in cpuinfo
    )


def _arch(machine: str, bits: object) -> str:
    """As ``uname -m``, but that of the programs: 32-bit Raspberry Pi OS has a 64-bit kernel."""
    return {"aarch64": "armv7l", "x86_64": "i686"}.get(machine, machine) if bits == 32 else machine


def _model(files: Mapping[str, str]) -> str:
    board = _device_tree(files, "model").strip("\0\n ")
    if board:
        return board
    match = re.search(r"^model name\s*:\s*(.+)$", files.get("/proc/cpuinfo", ""), re.MULTILINE)
    if match:
        return match.group(1).strip()
    return files.get("/sys/class/dmi/id/product_name", "").strip()


def _device_tree(files: Mapping[str, str], name: str) -> str:
    """A property of the board; where /proc does not lead to the tree, sysfs holds it."""
    base = "/sys/firmware/devicetree/base"
    return files.get(f"/proc/device-tree/{name}") or files.get(f"{base}/{name}", "")


def _matching(files: Mapping[str, str], name: str) -> list[str]:
    """Contents of the per-core files of this name, in the order of the cores."""

    def core(path: str) -> int:
        match = re.search(rf"/cpu({_NUMBER})/", path)
        return int(match.group(1)) if match else 0

    paths = sorted((path for path in files if path.endswith("/" + name)), key=core)
    return [files[path].strip() for path in paths]


def _common(texts: list[str]) -> str:
    """``performance`` where all agree, ``performance/powersave`` where they do not."""
    return "/".join(sorted(set(texts)))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return printable(value) if isinstance(value, str) else ""


def _int(value: object, default: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_INTEGER:
        return default
    return value
