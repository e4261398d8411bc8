"""The Python API: what the commands do, as methods that return typed results.

project = edgekit.Project.load()              # edgekit.toml here or above
bundle = project.quantize().bundle
outcome = project.deploy("local")
outcome.selection.rule
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from edgekit.config import Arguments, DeviceConfig, ProjectConfig
from edgekit.resolve import resolve_target, resolve_targets
from edgekit.types import Budget, Target

if TYPE_CHECKING:
    from edgekit.bundle import Bundle
    from edgekit.pipeline import DeployOutcome, QuantizeOutcome, RunOutcome
    from edgekit.pipeline.checking import CheckOutcome
    from edgekit.pipeline.debugging import DebugOutcome
    from edgekit.progress import Progress
    from edgekit.results import RunRecord


class Project:
    """One model with its data, its accuracy budget and its devices.

    The keyword arguments are the command line's options with underscores, such as
    ``Project(model="model.py:build", calib="photos/calib", eval="photos/choose", max_drop=0.01)``;
    see :class:`edgekit.config.Arguments`. What they leave out comes from the edgekit.toml in
    ``cwd`` (default: the current folder) or above it, where there is one.

    Raises:
        UsageError: an argument or an entry of the file is wrong, or there is no model.
    """

    def __init__(self, **arguments: Unpack[Arguments]) -> None:
        arguments.setdefault("python_names", True)
        self._config = ProjectConfig.from_args(**arguments)

    @classmethod
    def load(cls, path: str | Path = ".") -> Project:
        """The project of an edgekit.toml: the file itself, or a folder in or below its own.

        Raises:
            ConfigError: there is no such file, or it is wrong; names line and key.
        """
        project = cls.__new__(cls)
        project._config = ProjectConfig.load(Path(path))
        return project

    @property
    def config(self) -> ProjectConfig:
        """All settings, checked; frozen."""
        return self._config

    def check(self, *, progress: Progress | None = None) -> CheckOutcome:
        """Ask every runtime about every operator of the model, before anything is exported.

        Returns:
            the operators with their modules and source lines, and each runtime's verdicts;
            ``converts`` says whether all of them convert everywhere.

        Raises:
            UsageError: the model cannot be loaded or exported.
            WorkerCrashed: loading the model died.
        """
        from edgekit.pipeline import checking

        return checking.check(self._config, progress=progress)

    def quantize(self, *, progress: Progress | None = None) -> QuantizeOutcome:
        """Make the float and INT8 artifacts; what did not change is not made again.

        Returns:
            the bundle, the candidates that failed, and the INT8 artifacts within the budget on
            this machine (a preview: the device decides).

        Raises:
            UsageError: the model or the data cannot be used.
            WorkerCrashed: loading or calibrating the model died.
            ExportFailed: not one artifact could be made.
        """
        from edgekit import pipeline

        return pipeline.quantize(self._config, progress=progress)

    def debug(
        self,
        *,
        runtimes: Sequence[str] | None = None,
        samples: int = 8,
        progress: Progress | None = None,
    ) -> DebugOutcome:
        """Find the layers that the error of the bundle's INT8 artifacts comes from.

        Args:
            runtimes: default: all of the bundle.
            samples: so many golden samples of the bundle are run.
            progress: receives stages and log lines.

        Returns:
            per artifact every layer with its SQNR in place, its own error and advice.

        Raises:
            BundleError: there is no bundle yet, or the project has changed since.
            UsageError: the bundle has no INT8 artifact for the runtimes.
        """
        from edgekit.pipeline import debugging

        return debugging.debug(self._config, runtimes=runtimes, samples=samples, progress=progress)

    def open(self) -> Bundle:
        """The project's finished bundle, with every hash checked.

        Raises:
            BundleError: there is none yet, or it is damaged.
        """
        from edgekit.bundle import Bundle

        return Bundle.open(self._config.quantize.bundle)

    def probe(
        self,
        target: str | Target = "local",
        *,
        artifacts: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> DeployOutcome:
        """Push the finished bundle and measure it on a device; nothing is activated.

        Args:
            target: a name as for ``--target``, or a target itself.
            artifacts: ids to measure; all without it.
            progress: receives stages and log lines.

        Raises:
            BundleError: the bundle is missing or damaged.
            DeviceError: the device cannot be reached or is unfit.
        """
        from edgekit import pipeline

        with self.open() as bundle:
            return pipeline.probe(
                bundle, self._target(target), self._device, artifacts=artifacts, progress=progress
            )

    def deploy(
        self,
        target: str | Target = "local",
        *,
        activate: bool = True,
        progress: Progress | None = None,
    ) -> DeployOutcome:
        """Push the finished bundle, measure it, choose, and activate what was chosen.

        Returns:
            the recorded run with its selection, and what is active now. ``activation`` is None
            where no candidate keeps the budget; the selection says why for each.

        Raises:
            BundleError: the bundle is missing or damaged.
            DeviceError: the device cannot be reached or is unfit.
            DeployRolledBack: the health check failed; the old release stays active.
        """
        from edgekit import pipeline

        with self.open() as bundle:
            return pipeline.deploy(
                bundle, self._target(target), self._device, activate=activate, progress=progress
            )

    def run(
        self,
        targets: Sequence[str | Target] | None = None,
        *,
        activate: bool = True,
        fresh: bool = False,
        progress: Progress | None = None,
    ) -> RunOutcome:
        """Quantize, then deploy to each target (default: all of edgekit.toml).

        What did not change is not done again; ``fresh`` measures all the same.

        Raises:
            EdgekitError: as :meth:`quantize` and :meth:`deploy`.
        """
        from edgekit import pipeline

        if targets is None:
            found = resolve_targets(None, self._config.targets)
        else:
            found = [self._target(target) for target in targets]
        return pipeline.run(self._config, found, activate=activate, fresh=fresh, progress=progress)

    def select(self, run: str = "latest", *, budget: Budget | None = None) -> RunRecord:
        """Choose again from a recorded run and replace its selection; devices are not touched.

        Args:
            run: a run's folder or name, or ``"latest"``.
            budget: default: the project's.

        Raises:
            UsageError: there is no such run.
        """
        from edgekit import results

        folder = results.find_run(self._device.runs, run)
        results.reselect(folder, budget or self._config.budget, self._config.probe.objective)
        return results.load(folder)

    @property
    def _device(self) -> DeviceConfig:
        return self._config.device

    def _target(self, target: str | Target) -> Target:
        return resolve_target(target, self._config.targets) if isinstance(target, str) else target
