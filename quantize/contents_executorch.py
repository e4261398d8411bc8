"""ExecuTorch: what XNNPACK runs, what the portable kernels run, and which of them must be there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from edgekit.quantize import flatbuffer as fb
from edgekit.quantize.contents import Contents, Placement, describe
from edgekit.quantize.inspect_executorch import (
    XNNPACK,
    DelegateCall,
    KernelCall,
    ProgramFile,
    calls,
    constant_bytes,
)
from edgekit.quantize.xnnpack_payload import XnnpackCounts, read_payload


def contents(path: Path) -> Contents:
    """All methods of the program together."""
    file = ProgramFile(memoryview(path.read_bytes()))
    found = XnnpackCounts()
    placed: dict[Placement, Counter[str]] = {"delegate": found.operators, "fallback": Counter()}
    backends: Counter[str] = Counter()
    for plan in file.program.execution_plan:
        for call in calls(plan):
            if isinstance(call, KernelCall):
                operator = fb.item(plan.operators, call.op_index, "operator")
                placed["fallback"][operator.name] += 1
            elif isinstance(call, DelegateCall):
                delegate = fb.item(plan.delegates, call.delegate_index, "delegate")
                backends[delegate.id] += 1
                if delegate.id == XNNPACK:
                    read_payload(*file.payload(delegate), file.named, found)
                else:
                    placed["delegate"][f"all of a {delegate.id}"] += 1
    needs = [f"an ExecuTorch that reads program schema {file.program.version} (ET12)"]
    needs += [f"the backend {name}" for name in backends]
    kernels = sorted(placed["fallback"])
    if kernels:
        needs.append(f"the kernels {', '.join(kernels)}")
    if found.external:
        needs.append(f"the file with its {found.external} external weights (.ptd)")
    return describe(path, placed, constant_bytes(file, found), needs)
