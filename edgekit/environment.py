"""What this machine has for making artifacts: packages that import, a compiler, room on the disk.

Every exporter's packages are imported in a process of their own: some wheels die of SIGILL or
SIGSEGV on a CPU or beside a library that they were not built for, and that must be told, not felt.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit import isolate, registry
from edgekit.errors import WorkerCrashed

_IMPORT_TIMEOUT_S = 180.0
_IMPORT_MEMORY_BYTES = 4_000_000_000
_ENOUGH_DISK_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Check:
    """One line of ``edgekit doctor``. ``versions`` are those of the packages that were imported."""

    name: str
    ok: bool
    detail: str = ""
    remedy: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def check_exporters() -> list[Check]:
    """Import what each exporter needs, each in a process of its own, two at a time."""
    entries = registry.runtimes()
    with tempfile.TemporaryDirectory(prefix="edgekit-doctor-") as folder:
        jobs = [
            isolate.Job(
                name=f"exporter {name}",
                entry="edgekit.environment:import_packages",
                payload={"packages": list(entry.packages)},
                log=Path(folder) / f"{name}.log",
                timeout_s=_IMPORT_TIMEOUT_S,
                memory_bytes=_IMPORT_MEMORY_BYTES,
            )
            for name, entry in entries.items()
        ]
        outcomes = isolate.run_many(jobs, max_workers=2)
    return [
        _exporter_check(name, entry, outcome)
        for (name, entry), outcome in zip(entries.items(), outcomes, strict=True)
    ]


def import_packages(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Import ``payload["packages"]``; gives their versions and those that are missing or broken.

    Runs in a process of its own, see :mod:`edgekit.isolate`.
    """
    import importlib
    import importlib.metadata

    owners = importlib.metadata.packages_distributions()
    versions: dict[str, str] = {}
    missing: list[str] = []
    broken: dict[str, str] = {}
    for name in payload["packages"]:
        top = name.partition(".")[0]
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and error.name.partition(".")[0] == top:
                missing.append(top)
            else:
                broken[top] = str(error)
        except Exception as error:
            broken[top] = f"{type(error).__name__}: {error}"
        else:
            for distribution in owners.get(top, ())[:1]:
                versions[distribution] = importlib.metadata.version(distribution)
    return {"versions": versions, "missing": missing, "broken": broken}


def _exporter_check(name: str, entry: registry.RuntimeEntry, outcome: isolate.Outcome) -> Check:
    install = f"pip install 'edgekit[{entry.extra}]'"
    if outcome.error is not None:
        detail = outcome.error.message
        if isinstance(outcome.error, WorkerCrashed) and outcome.error.signal_name == "SIGILL":
            detail += " Its wheel uses instructions that this CPU does not have."
        return Check(name, False, detail, f"Reinstall it: {install}")
    found = outcome.value
    if found["missing"]:
        return Check(name, False, f"not installed: {', '.join(found['missing'])}", install)
    if found["broken"]:
        package, reason = next(iter(found["broken"].items()))
        return Check(name, False, f"{package} does not import: {reason}", f"Reinstall: {install}")
    return Check(name, True, versions=found["versions"])


def check_sources() -> list[Check]:
    """Which optional packages of model sources are installed; they are not imported."""
    import importlib.metadata

    found = []
    for name in ("torchvision", "timm"):
        try:
            version = importlib.metadata.version(name)
            found.append(Check(name, True, versions={name: version}))
        except importlib.metadata.PackageNotFoundError:
            remedy = f"pip install 'edgekit[{name}]' (only for {name}:NAME models)"
            found.append(Check(name, False, "not installed", remedy))
    return found


def check_machine(folder: Path) -> list[Check]:
    """Python, CPUs and memory, a C++ compiler, and room in ``folder``."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    compiler = shutil.which("g++")
    free = shutil.disk_usage(folder).free
    return [
        Check("python", True, f"{platform.python_version()} ({sys.executable})"),
        Check(
            "machine",
            True,
            f"{platform.machine()}, {os.cpu_count()} CPUs, {memory / 1e9:.1f} GB memory, "
            f"{platform.system()} {platform.release()}",
        ),
        Check(
            "compiler",
            compiler is not None,
            compiler or "no g++, which the ExecuTorch runner on this machine is built with",
            "" if compiler else "apt-get install g++",
        ),
        Check(
            "disk",
            free >= _ENOUGH_DISK_BYTES,
            f"{free / 1e9:.1f} GB free in {folder}",
            "" if free >= _ENOUGH_DISK_BYTES else "Make room: making a bundle takes about 1 GB.",
        ),
    ]
