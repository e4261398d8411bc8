"""TorchScript: what PyTorch executes, by the type that it computes in, and the file's format."""

from __future__ import annotations

import zipfile
from pathlib import Path

from edgekit.quantize import torchscript_code
from edgekit.quantize.contents import Contents, Placement, describe
from edgekit.quantize.inspect_torchscript import archive_parts, run_once

#: PyTorch's caffe2/serialize/versions.h dates format 10 to February 2022; 1.12 was branched later.
_FIRST_WITH_FORMAT = {10: "1.12"}


def contents(path: Path) -> Contents:
    """Of one run on zeros; without operators where the code is not plain tensor code."""
    counts = None if torchscript_code.read(path).effects else run_once(path)
    placed: dict[Placement, dict[str, int]] = {}
    if counts is not None:
        placed = {"int8": dict(counts.int8_ops), "float": dict(counts.float_ops)}
        placed["convert"] = {"aten::quantize and dequantize": counts.quantize_ops}
    needs = [_version(path)]
    if counts is not None and counts.int8_ops:
        needs.append("a quantized engine (qnnpack on ARM)")
    return describe(path, placed, archive_parts(path), needs)


def _version(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        texts = [
            archive.read(name).decode("ascii", "replace").strip()
            for name in archive.namelist()
            if name.split("/")[1:] in (["version"], [".data", "version"])
        ]
    number = max((int(text) for text in texts if text.isdigit()), default=0)
    first = _FIRST_WITH_FORMAT.get(number)
    version = f"PyTorch {first} or newer" if first else "a PyTorch"
    return f"{version} that loads TorchScript (file format {number or 'not stated'})"
