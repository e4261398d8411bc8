"""The doctor on a device whose runtimes really fail: Arm programs that die as wheels do."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekit.progress import Quiet
from edgekit.targets.device import connect
from edgekit.targets.doctor import check_runtime
from edgekit.targets.runtimes import Runtime, RuntimeFile
from edgekit.targets.virtual.state import VirtualDevice

COMPILER = "aarch64-linux-gnu-g++"


@dataclass(frozen=True)
class Ill:
    """A program that fails, and what the doctor has to say about it."""

    source: str
    flags: tuple[str, ...]
    signal: str
    message: str
    remedy: str


#: Linked statically where they may be: the compiler's libraries are not those of every device.
ILL = {
    # An atomic addition of Armv8.1, as in wheels that are built for servers.
    "instruction": Ill(
        "int main(int n, char**) { static int x; return __atomic_fetch_add(&x, n, 5); }",
        ("-static", "-march=armv8.1-a+lse", "-mno-outline-atomics"),
        "SIGILL",
        "executed an instruction that this CPU does not have (SIGILL)",
        "use another version or runtime",
    ),
    "memory": Ill(
        "#include <vector>\n"
        "int main(int n, char**) { return std::vector<char>(n * (1L << 50)).size() == 7; }",
        ("-static",),
        "SIGABRT",
        "ran out of memory",
        "too little memory",
    ),
    "symbol": Ill(
        "int from_elsewhere(); int main() { return from_elsewhere(); }",
        ("-L.", "-lelsewhere"),
        "",
        "cannot be loaded: libelsewhere.so: cannot open shared object file",
        "status --verify",
    ),
}


def compile_for_arm(source: str, out: Path, *flags: str) -> Path:
    out.with_suffix(".cpp").write_text(source)
    command = [COMPILER, "-O1", str(out.with_suffix(".cpp")), "-o", str(out), *flags]
    done = subprocess.run(command, cwd=out.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("name", ILL)
def test_what_is_wrong_is_called_by_its_name(
    name: str, bookworm_device: VirtualDevice, tmp_path: Path
) -> None:
    ill = ILL[name]
    compile_for_arm("int from_elsewhere() { return 0; }", tmp_path / "libelsewhere.so", "-shared")
    program = compile_for_arm(ill.source, tmp_path / "run", *ill.flags)
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    with connect(bookworm_device.target()) as device:
        device._runtimes["executorch"] = Runtime(
            name="executorch",
            version=f"0.{name}",
            abi="aarch64",
            files=(RuntimeFile("run", program, digest, executable=True),),
            argv=("{dir}/run",),
        )
        found = check_runtime(device, "executorch", progress=Quiet())
    assert not found.ok
    assert found.signal == ill.signal
    assert ill.message in found.message
    assert ill.remedy in found.remedy
