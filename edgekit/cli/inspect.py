"""``edgekit inspect``."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit import codec
from edgekit.bundle import Bundle
from edgekit.cli.output import Output
from edgekit.cli.tables import table
from edgekit.errors import UsageError
from edgekit.isolate import Job, run_isolated
from edgekit.quantize.contents import Contents, Placement
from edgekit.quantize.macs import SIZE_NOTE
from edgekit.types import Artifact, Inspection, OpCount
from edgekit.units import megabytes

if TYPE_CHECKING:
    from rich.console import Console

_PLACES: dict[Placement, str] = {
    "delegate": "in the delegate",
    "fallback": "fallback kernels",
    "int8": "in int8",
    "float": "in float",
    "convert": "type changes",
    "other": "other operators",
    "unknown": "placement unknown",
}
_TIMEOUT_S = 600.0
_MEMORY_BYTES = 8_000_000_000


def inspect(
    out: Output,
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A bundle's folder or .tar, or a model file.")
    ],
) -> None:
    """Open a bundle or a model file and say what it really contains.

    Counted are the multiply-accumulates of convolutions and matrix products: how many of them run
    in int8, and how many inside the runtime's accelerated delegate. Of a model file, edgekit's or
    not, also shown: operators by where they run, size by part, and what the runtime has to be.

    A TorchScript file (.pt) is run once on zeros to count what it does, but only if its code holds
    nothing but plain tensor operators. One that reads or writes files is not loaded at all.
    """
    if not path.exists():
        raise UsageError(f"There is no file or folder {path}.")
    if path.is_dir() or path.suffix == ".tar":
        _inspect_bundle(out, path)
    else:
        _inspect_file(out, path)


def _inspect_bundle(out: Output, path: Path) -> None:
    with Bundle.open(path) as bundle:
        manifest = bundle.manifest
        document = {
            "bundle": str(path),
            "digest": bundle.digest,
            "manifest": codec.to_jsonable(manifest),
        }
        model = manifest.model
        lines = [
            f"{path}: {model.name} from {model.source}",
            *(f"  input   {t.name} {_shape(t.shape)} {t.dtype} {t.layout}" for t in model.inputs),
            *(f"  output  {t.name} {_shape(t.shape)} {t.dtype}" for t in model.outputs),
            f"  golden  {manifest.golden.n} samples, metric {manifest.golden.metric}",
            f"  digest  {bundle.digest}",
        ]

        def show(console: Console) -> None:
            for line in lines:
                console.print(line.rstrip(), markup=False)
            console.print(
                table(
                    ("artifact", "size", "int8 MACs", "delegated", "outside the delegate"),
                    [_row(artifact) for artifact in manifest.artifacts],
                    right=("size", "int8 MACs", "delegated"),
                )
            )

        out.result(document, show)


def _inspect_file(out: Output, path: Path) -> None:
    # Parsers of model formats are native code: a damaged file may take its process down.
    with tempfile.TemporaryDirectory(prefix="edgekit-inspect-") as folder:
        found = run_isolated(
            Job(
                name=f"inspect {path.name}",
                entry="edgekit.quantize.contents:describe_worker",
                payload={"path": str(path.absolute())},
                log=Path(folder) / "inspect.log",
                timeout_s=_TIMEOUT_S,
                memory_bytes=_MEMORY_BYTES,
            )
        )
    inspection = codec.from_json(Inspection, found["inspection"], where=str(path))
    contents = None
    if found["contents"] is not None:
        contents = codec.from_json(Contents, found["contents"], where=str(path))
    size = path.stat().st_size

    def show(console: Console) -> None:
        rows = [("size", megabytes(size)), *_facts(inspection, contents)]
        console.print(table(("", str(path)), rows))

    out.result({"path": str(path), "size_bytes": size, **found}, show)


def _row(artifact: Artifact) -> tuple[str, ...]:
    found = artifact.inspection
    if found is None:
        return (artifact.id, megabytes(artifact.size_bytes), "-", "-", "not inspected")
    return (
        artifact.id,
        megabytes(artifact.size_bytes),
        _share(found.int8_mac_share),
        _share(found.delegated_share),
        _ops(found.outside_ops),
    )


def _facts(found: Inspection, contents: Contents | None) -> list[tuple[str, str]]:
    facts: list[tuple[str, Any]] = [
        ("int8 MACs", _share(found.int8_mac_share)),
        ("delegated MACs", _share(found.delegated_share)),
        ("MACs", "-" if found.macs is None else f"{found.macs / 1e6:,.1f} M"),
        ("weights", megabytes(found.weight_bytes)),
    ]
    if contents is None:
        facts.append(("outside the delegate", _ops(found.outside_ops)))
    else:
        facts += [(_PLACES[one.placement], _ops(one.ops)) for one in contents.operators]
    facts += [("quantize operators", found.quantize_ops), ("transposes", found.transposes)]
    if contents is not None:
        parts = sorted(contents.bytes_by_part.items(), key=lambda part: -part[1])
        facts.append(("size by part", ", ".join(f"{n} {megabytes(size)}" for n, size in parts)))
        facts += [("needs", need) for need in contents.needs]
    # The figures of this one are in the row above.
    notes = [n for n in found.notes if contents is None or not n.startswith(SIZE_NOTE)]
    facts += [("note", note) for note in notes]
    return [(name, str(value)) for name, value in facts]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _ops(ops: Sequence[OpCount]) -> str:
    return ", ".join(f"{op.op} x{op.count}" for op in ops) or "none"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
