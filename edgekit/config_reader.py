"""How :mod:`edgekit.config` reads: find the file, lay the arguments over it, check every table."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

from edgekit import registry
from edgekit.config import (
    FILE_NAME,
    Arguments,
    DataConfig,
    DeviceConfig,
    ModelConfig,
    ProbeConfig,
    ProjectConfig,
    QuantizeConfig,
    find_file,
)
from edgekit.config_values import anchored, default_model_name, parse_shape, path_under
from edgekit.errors import ConfigError, UsageError
from edgekit.preprocess_config import read_preprocess
from edgekit.toml_reader import Section, key_lines, one_of, whole
from edgekit.types import Budget, Metric, Preprocess, Target

SCHEMA = 1
TABLES = ("model", "preprocess", "data", "quantize", "budget", "probe", "targets")
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
NAME_SHAPE = "letters, digits, '_', '.' or '-', at most 64, not starting with a sign"
_SECRETS = re.compile(r"pass(word|phrase|wd)?|secret|token|private_?key", re.IGNORECASE)

# Where an argument belongs in the document.
_PLACES: dict[str, tuple[str, str]] = {
    "model": ("model", "source"),
    "preprocess": ("preprocess", ""),
    **{k: ("model", k) for k in ("name", "weights", "unsafe_weights", "input", "example")},
    **{k: ("data", k) for k in ("calib", "eval", "report", "train", "metric")},
    **{k: ("quantize", k) for k in ("runtimes", "recipes", "rungs", "replay", "bundle")},
    **{k: ("quantize", k) for k in ("timeout_s", "memory_mb")},
    **{k: ("budget", k) for k in ("max_drop", "max_size_mb", "max_rss_mb")},
    **{k: ("probe", k) for k in ("threads", "processes", "budget_s", "objective", "seed")},
}
_PATHS = {"model", "weights", "example", "calib", "eval", "report", "train", "bundle", "replay"}


def read_project(arguments: Arguments) -> ProjectConfig:
    """See :meth:`edgekit.config.ProjectConfig.from_args`."""
    return _Document(arguments).project()


def read_device(arguments: Arguments) -> DeviceConfig:
    """See :meth:`edgekit.config.DeviceConfig.from_args`."""
    return _Document(arguments).device()


class _Document:
    """The file's tables with the arguments laid over them, and what is wrong with either."""

    def __init__(self, arguments: Arguments) -> None:
        cwd = (arguments.get("cwd") or Path.cwd()).absolute()
        given = arguments.get("config")
        self.file = given / FILE_NAME if given and given.is_dir() else given or find_file(cwd)
        self.root = self.file.absolute().parent if self.file else cwd
        self.problems: list[str] = []
        self._python_names = bool(arguments.get("python_names"))
        self._given: dict[tuple[str, str], str] = {}
        self.tables: dict[str, Any] = {}
        self._lines: dict[tuple[str, ...], int] = {}
        self._shown = _shown(self.file) if self.file else ""
        if self.file:
            self._read_file(self.file)
        self._lay_over(arguments, cwd)

    def _read_file(self, file: Path) -> None:
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(
                f"{self._shown} does not exist.",
                remedy="Write one with `edgekit init --model MODEL`.",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._shown} cannot be read: {error}") from error
        try:
            self.tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            line = re.search(r"at line (\d+)", str(error))
            place = f"{self._shown}:{line[1]}" if line else self._shown
            raise ConfigError(f"{place}: not valid TOML: {error}") from error
        self._lines = key_lines(text)
        schema = self.tables.pop("schema", SCHEMA)
        if schema != SCHEMA:
            line_no = self._lines.get(("schema",), 1)
            newer = isinstance(schema, int) and schema > SCHEMA
            raise ConfigError(
                f"{self._shown}:{line_no}: schema: this edgekit reads schema {SCHEMA}, "
                f"not {schema!r}.",
                remedy="Update edgekit." if newer else f"Write `schema = {SCHEMA}`.",
            )
        top = Section(self.tables, self._labeller(()), self.problems)
        for table in TABLES:
            value = top.raw(table)
            if value is not None and not isinstance(value, dict):
                top.complain(table, f"must be a table, [{table}].")
                self.tables[table] = {}
        top.finish()

    def _lay_over(self, arguments: Arguments, cwd: Path) -> None:
        for argument in ("model", "preprocess"):
            if arguments.get(argument) is not None:
                self.tables[argument] = {}
        for name, (table, key) in _PLACES.items():
            value = cast(Mapping[str, Any], arguments).get(name)
            if value is None:
                continue
            if name in _PATHS:
                value = anchored(str(value), cwd, self.root)
            label = f"{name}=" if self._python_names else "--" + name.replace("_", "-")
            if name == "model" and not self._python_names:
                label = "MODEL"
            self._given[table, key] = label
            if name == "preprocess":
                self.tables[table] = self._preprocess_argument(value, label)
            else:
                self.tables.setdefault(table, {})[key] = value

    def _preprocess_argument(self, value: str | Preprocess, label: str) -> Any:
        if isinstance(value, Preprocess):
            return value
        if re.fullmatch(r"\w+", value):
            return {"preset": value}
        try:
            return tomllib.loads(f"v = {{{value}}}")["v"]
        except tomllib.TOMLDecodeError as error:
            raise UsageError(
                f"{label}: {value!r} is neither a preset nor `key = value, ...`: {error}",
                remedy='For example --preprocess "resize=256, crop=[224, 224]".',
            ) from error

    def _labeller(self, table: tuple[str, ...]) -> Any:
        def label(key: str) -> str:
            path = (*table, key)
            if table and (table[0], "") in self._given:
                return f"{self._given[table[0], '']} {key}"
            if len(table) == 1 and (table[0], key) in self._given:
                return self._given[table[0], key]
            line = next((self._lines[p] for p in _prefixes(path) if p in self._lines), 1)
            return f"{self._shown or FILE_NAME}:{line}: {'.'.join(path)}"

        return label

    def section(self, *table: str) -> Section:
        values: Any = self.tables
        for part in table:
            values = values.get(part, {})
        return Section(values, self._labeller(table), self.problems)

    def project(self) -> ProjectConfig:
        if not self.tables.get("model"):
            self._raise_problems()
            raise UsageError(
                f"No model: neither a MODEL nor a [model] table in {FILE_NAME} was given."
                if self.file
                else f"No model: there is no {FILE_NAME} in {self.root} or above, and no MODEL.",
                remedy="Name one, for example model.py:build, or run `edgekit init`.",
            )
        model, data = self._model(), self._data()
        preprocess = self._preprocess()
        device, quantize = self._device_parts(), self._quantize()
        self._raise_problems()
        return ProjectConfig(
            self.root, model, preprocess, data, quantize, *device[:2], targets=device[2]
        )

    def device(self) -> DeviceConfig:
        budget, probe, targets = self._device_parts()
        quantize = self._quantize()
        self._raise_problems()
        return DeviceConfig(self.root, quantize.bundle, budget, probe, targets)

    def _raise_problems(self) -> None:
        if self.problems:
            from_file = any(self._shown and p.startswith(self._shown) for p in self.problems)
            raise (ConfigError if from_file else UsageError)("\n".join(self.problems))

    def _model(self) -> ModelConfig:
        table = self.section("model")
        source = table.text("source")
        if not source:
            table.complain("source", "is missing: say what to load, such as model.py:build.")
        name = table.text("name", "", pattern=NAME, shape=NAME_SHAPE)
        weights = table.text("weights")
        found = ModelConfig(
            name=name or default_model_name(source),
            source=source,
            weights=path_under(self.root, weights) if weights else None,
            unsafe_weights=table.flag("unsafe_weights", False),
            inputs=table.items("input", (), parse_shape, "shapes such as '1x3x224x224'"),
            example=table.text("example"),
        )
        table.finish()
        return found

    def _preprocess(self) -> Preprocess | None:
        given = self.tables.get("preprocess")
        if given is None or isinstance(given, Preprocess):
            return given
        table = self.section("preprocess")
        found = read_preprocess(table)
        table.finish()
        return found

    def _data(self) -> DataConfig:
        table = self.section("data")
        metric = table.choice("metric", "auto", ("auto", *get_args(Metric)))
        found = DataConfig(
            calib=table.text("calib") or None,
            eval=table.text("eval") or None,
            report=table.text("report") or None,
            train=table.text("train") or None,
            metric=cast(Literal["auto"] | Metric, metric),
        )
        table.finish()
        return found

    def _quantize(self) -> QuantizeConfig:
        table = self.section("quantize")
        runtimes = registry.names("runtimes")
        replay = table.text("replay")
        found = QuantizeConfig(
            runtimes=table.items("runtimes", runtimes, one_of(runtimes), "runtimes"),
            recipes=table.items("recipes", (), one_of(registry.RECIPES), "recipes"),
            rungs=self._rungs(table),
            replay=path_under(self.root, replay) if replay else None,
            bundle=path_under(self.root, table.text("bundle", "bundle")),
            timeout_s=table.number("timeout_s", 900.0, 1.0, 604_800.0),
            memory_bytes=round(table.number("memory_mb", 8192.0, 64.0, 1e7) * 1_000_000),
        )
        table.finish()
        return found

    def _rungs(self, table: Section) -> tuple[str, ...]:
        """May be empty: then nothing is repaired."""
        if table.raw("rungs") == []:
            return ()
        return table.items("rungs", registry.RUNGS, one_of(registry.RUNGS), "rungs")

    def _device_parts(self) -> tuple[Budget, ProbeConfig, Mapping[str, Target]]:
        table = self.section("budget")
        budget = Budget(
            max_drop=table.number("max_drop", 0.01, 0.0, 1.0, open_high=True),
            max_size_bytes=table.megabytes("max_size_mb"),
            max_rss_bytes=table.megabytes("max_rss_mb"),
        )
        table.finish()
        table = self.section("probe")
        objective = table.choice("objective", "p50", ("p50", "p90"))
        probe = ProbeConfig(
            threads=table.items("threads", (), whole(1, 256), "thread counts"),
            processes=table.integer("processes", 5, 1, 1000),
            budget_s=table.number("budget_s", 1.0, 0.01, 3600.0),
            objective=cast(Literal["p50", "p90"], objective),
            seed=table.integer("seed", 0, 0, 2**32 - 1),
        )
        table.finish()
        return budget, probe, {name: self._target(name) for name in self.tables.get("targets", {})}

    def _target(self, name: str) -> Target:
        if not isinstance(self.tables["targets"][name], dict):
            self.section("targets").complain(name, f"must be a table, [targets.{name}].")
            return Target(name, "local", "")
        if not re.fullmatch(NAME, name):
            self.section("targets").complain(name, f"a target's name must be {NAME_SHAPE}.")
        table = self.section("targets", name)
        known = sorted({"local", "ssh", "adb", *registry.transports()})
        transport = table.choice("transport", "", known)
        if not transport and "transport" not in table:
            table.complain("transport", f"is missing: one of {', '.join(known)}.")
        options = table.raw("options") or {}
        if not isinstance(options, dict) or not all(
            isinstance(value, (str, int, float, bool)) for value in options.values()
        ):
            table.complain("options", "must be a table of plain values.")
            options = {}
        for key in options:
            if _SECRETS.search(key):
                table.complain("options", f"{key!r} looks like a secret, which has no place here.")
        found = Target(
            name=name,
            transport=transport,
            address=table.text("address"),
            workdir=table.text("workdir", "~/.edgekit"),
            profile=table.text("profile"),
            options={key: str(value) for key, value in options.items()},
        )
        table.finish()
        return found


def _shown(file: Path) -> str:
    try:
        return str(file.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(file)


def _prefixes(path: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [path[:end] for end in range(len(path), 0, -1)]
