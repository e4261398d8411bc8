"""edgekit.toml and the command line, checked and merged into one frozen :class:`ProjectConfig`.

Options override the file; without a file, options alone make a project. Paths in the file are
relative to its folder, those on the command line to the current one. A MODEL or a ``--preprocess``
on the command line replaces the file's whole table: another model's weights must not stick to it.
Sizes are given in MB (1,000,000 bytes) and held in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from edgekit import registry
from edgekit.errors import ConfigError
from edgekit.types import Budget, Metric, Preprocess, Target

FILE_NAME = "edgekit.toml"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What to load. ``source`` and ``example`` are relative to the project's root.

    ``inputs`` are shapes with the batch dimension first; empty where ``example`` or the source
    itself gives the inputs. ``unsafe_weights`` allows unpickling of arbitrary objects.
    """

    name: str
    source: str
    weights: Path | None = None
    unsafe_weights: bool = False
    inputs: tuple[tuple[int, ...], ...] = ()
    example: str = ""


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Sample sets: a folder of images, an .npz or ``file.py:function``, relative to the root.

    ``train`` needs no labels: quantization-aware training learns from the float model.
    """

    calib: str | None = None
    eval: str | None = None
    report: str | None = None
    train: str | None = None
    metric: Literal["auto"] | Metric = "auto"


@dataclass(frozen=True, slots=True)
class QuantizeConfig:
    """What to make, where to put it, and the limits of one export process.

    Without ``recipes`` the model decides: fp32, and dynamic INT8 for transformers, static INT8 for
    the others. ``rungs`` are those of the repair ladder that may be climbed, in this order.
    ``replay`` is a bundle whose recipes are applied as they are saved there.
    """

    runtimes: tuple[str, ...]
    recipes: tuple[str, ...]
    bundle: Path
    rungs: tuple[str, ...] = registry.RUNGS
    replay: Path | None = None
    timeout_s: float = 900.0
    memory_bytes: int = 8_192_000_000


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """How to measure: per artifact and thread count, ``processes`` runs of ``budget_s`` seconds.

    Without ``threads``, the counts of the device's profile are taken, as far as it has CPUs.
    """

    threads: tuple[int, ...] = ()
    processes: int = 5
    budget_s: float = 1.0
    objective: Literal["p50", "p90"] = "p50"
    seed: int = 0


class Arguments(TypedDict, total=False):
    """What may be given beside or instead of a file; the names are those of the options.

    ``cwd`` is what relative paths start from and where the search for a file begins; ``config``
    names the file; ``python_names`` makes messages say ``max_drop=`` instead of ``--max-drop``.
    ``preprocess`` is a preset, or keys of its table: ``"resize=256, crop=[224, 224]"``.
    """

    cwd: Path | None
    config: Path | None
    python_names: bool
    model: str | None
    name: str | None
    weights: str | Path | None
    unsafe_weights: bool | None
    input: list[str] | None
    example: str | None
    preprocess: str | Preprocess | None
    calib: str | Path | None
    eval: str | Path | None
    report: str | Path | None
    train: str | Path | None
    metric: str | None
    runtimes: list[str] | None
    recipes: list[str] | None
    rungs: list[str] | None
    replay: str | Path | None
    bundle: str | Path | None
    timeout_s: float | None
    memory_mb: float | None
    max_drop: float | None
    max_size_mb: float | None
    max_rss_mb: float | None
    threads: list[int] | None
    processes: int | None
    budget_s: float | None
    objective: str | None
    seed: int | None


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """The part of a project that needs no model: what deploy, probe and select work from."""

    root: Path
    bundle: Path
    budget: Budget
    probe: ProbeConfig
    targets: Mapping[str, Target] = field(default_factory=dict)

    @property
    def runs(self) -> Path:
        """The folder of the run records."""
        return self.root / "runs"

    @classmethod
    def from_args(cls, **arguments: Unpack[Arguments]) -> DeviceConfig:
        """As :meth:`ProjectConfig.from_args`; a model is neither needed nor looked at."""
        from edgekit.config_reader import read_device

        return read_device(arguments)


@dataclass(frozen=True, slots=True)
class ProjectConfig:
    """Everything that quantize, deploy and run need to know. ``root`` is absolute."""

    root: Path
    model: ModelConfig
    preprocess: Preprocess | None
    data: DataConfig
    quantize: QuantizeConfig
    budget: Budget
    probe: ProbeConfig
    targets: Mapping[str, Target] = field(default_factory=dict)

    @property
    def device(self) -> DeviceConfig:
        """The part that deploy, probe and select need."""
        return DeviceConfig(self.root, self.quantize.bundle, self.budget, self.probe, self.targets)

    @classmethod
    def load(cls, path: Path | None = None) -> ProjectConfig:
        """Read edgekit.toml: ``path`` itself, or the first one in folder ``path`` or above it.

        Raises:
            ConfigError: the file is missing or wrong.
        """
        start = path if path is not None else Path.cwd()
        if start.is_dir():
            found = find_file(start)
            if found is None:
                raise ConfigError(
                    f"There is no {FILE_NAME} in {start.absolute()} or above it.",
                    remedy="Write one with `edgekit init --model MODEL`.",
                )
            start = found
        return cls.from_args(config=start)

    @classmethod
    def from_args(cls, **arguments: Unpack[Arguments]) -> ProjectConfig:
        """Merge edgekit.toml, where there is one, with arguments; an argument wins, None is absent.

        Raises:
            ConfigError: an entry of the file is wrong.
            UsageError: an argument is wrong, or neither names a model.
        """
        from edgekit.config_reader import read_project

        return read_project(arguments)


def find_file(start: Path) -> Path | None:
    """The edgekit.toml in folder ``start`` or the nearest one above it, or None."""
    for folder in (start.absolute(), *start.absolute().parents):
        if (folder / FILE_NAME).is_file():
            return folder / FILE_NAME
    return None
