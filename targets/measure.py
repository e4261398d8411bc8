"""Runs artifacts on this machine through the same runner contract that devices use."""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import LinkLost, RunnerFailed
from edgekit.targets import runner, runtimes
from edgekit.targets.abi import host_abi
from edgekit.targets.local import LocalTransport
from edgekit.types import BYTES_PER_ELEMENT, TensorSpec

if TYPE_CHECKING:
    import numpy as np


class HostMeasurer:
    """Gives an artifact's outputs on this machine; each call is a process of its own.

    Args:
        threads: thread count of the runner.
        timeout_s: wall seconds after which one call is given up.
        cache: where runtimes are kept; default :func:`edgekit.targets.runtimes.cache_dir`.
    """

    def __init__(
        self, *, threads: int = 1, timeout_s: float = 900.0, cache: Path | None = None
    ) -> None:
        self._threads = threads
        self._timeout_s = timeout_s
        self._cache = cache or runtimes.cache_dir()
        self._commands: dict[str, list[str]] = {}

    def outputs(
        self,
        artifact: Path,
        runtime: str,
        inputs: Sequence[np.ndarray[Any, Any]],
        output_specs: Sequence[TensorSpec],
        *,
        workdir: Path,
    ) -> list[np.ndarray[Any, Any]]:
        """Runs every sample once.

        Args:
            artifact: the file to run.
            runtime: which runtime runs it, as in ``Artifact.runtime``.
            inputs: one array per model input, shape (n, *shape of the input with batch 1). A
                read-only memory map of a whole raw file is given to the runner as that file, others
                are streamed, not loaded.
            output_specs: the outputs that are expected, in order.
            workdir: an existing folder for raw files; outputs stay there, inputs do not.

        Returns:
            One read-only memory-mapped array per output, shape (n, *shape of the output). The
            mapping outlives the removal of ``workdir``.

        Raises:
            RunnerFailed: the runner crashed, ran out of time, or its outputs are other ones.
        """
        import numpy as np

        counts = {len(array) for array in inputs}
        if len(counts) != 1 or 0 in counts:
            raise ValueError("inputs must be stacked along a first axis of one, non-zero length")
        n = counts.pop()
        kept = Path(tempfile.mkdtemp(prefix=f"{artifact.stem}-", dir=workdir))
        with tempfile.TemporaryDirectory(prefix="inputs-", dir=workdir) as folder:
            paths = [
                _raw_file(array) or _write_raw(Path(folder) / f"input-{index}.raw", array)
                for index, array in enumerate(inputs)
            ]
            arguments = runner.RunnerArguments(
                model=str(artifact),
                threads=self._threads,
                samples=n,
                inputs=tuple(str(path) for path in paths),
                specs=tuple(runner.spec(a.dtype.name, a.shape[1:]) for a in inputs),
                outputs=tuple(str(kept / f"output-{i}.raw") for i in range(len(output_specs))),
            )
            report = self._run(runtime, arguments, artifact.name)
        found = [(tensor.dtype, tensor.shape) for tensor in report.outputs]
        wanted = [(spec.dtype, spec.shape) for spec in output_specs]
        if found != wanted:
            raise RunnerFailed(
                f"{artifact.name}: its outputs are {found}, expected {wanted}.", kind="model"
            )
        arrays: list[np.ndarray[Any, Any]] = []
        for name, (dtype, shape) in zip(arguments.outputs, wanted, strict=True):
            expected = n * math.prod(shape) * BYTES_PER_ELEMENT[dtype]
            if Path(name).stat().st_size != expected:
                raise RunnerFailed(
                    f"{artifact.name}: an output file is not {expected} bytes.", kind="exit"
                )
            arrays.append(np.memmap(name, dtype=dtype, mode="r", shape=(n, *shape)))
        return arrays

    def _run(
        self, runtime: str, arguments: runner.RunnerArguments, what: str
    ) -> runner.RunnerReport:
        argv = [*self.command(runtime), *arguments.argv()]
        try:
            done = LocalTransport().run(argv, timeout_s=self._timeout_s)
        except LinkLost:
            ended = runner.RunnerExit(-9, "", "", timed_out=True)
        else:
            ended = runner.RunnerExit(
                done.returncode,
                done.stdout.decode("utf-8", "replace"),
                done.stderr.decode("utf-8", "replace"),
            )
        return runner.judge(ended, what=what)

    def command(self, runtime: str) -> list[str]:
        """The command of a runtime's runner on this machine, assembled on first use."""
        if runtime not in self._commands:
            resolved = runtimes.resolve(runtime, host_abi(), cache=self._cache)
            folder = runtimes.assemble(resolved, self._cache / "runtimes")
            self._commands[runtime] = resolved.command(str(folder), sys.executable)
        return self._commands[runtime]


def _raw_file(array: np.ndarray[Any, Any]) -> Path | None:
    """The file whose bytes are those of the array, if there is one.

    A view of a map keeps the file's name and the offset of the whole, so it is the size that tells.
    """
    import numpy as np

    if not isinstance(array, np.memmap) or array.filename is None:
        return None
    if array.mode != "r" or array.offset != 0 or not array.flags.c_contiguous:
        return None
    if array.dtype != array.dtype.newbyteorder("<"):
        return None
    path = Path(array.filename)
    try:
        return path if path.stat().st_size == array.nbytes else None
    except OSError:  # the map outlives its file
        return None


def _write_raw(path: Path, array: np.ndarray[Any, Any]) -> Path:
    """Writes sample by sample: an evaluation set need not fit in memory."""
    import numpy as np

    little = array.dtype.newbyteorder("<")
    with open(path, "wb") as file:
        for sample in array:
            file.write(np.ascontiguousarray(sample, dtype=little).tobytes())
    return path
