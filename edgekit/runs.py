"""SQL over many runs: DuckDB reads the JSON files of all run folders into four tables.

    runs         run, started_utc, model, target, device, arch, emulated, probes, chosen, runtime,
                 precision, threads, p50_ms, p90_ms, drop_value, size_mb, peak_rss_mb, max_drop,
                 rule
    candidates   run, model, artifact_id, runtime, precision, threads, p50_ms, p50_low_ms,
                 p50_high_ms, p90_ms, fps, drop_value, size_mb, peak_rss_mb, emulated, eligible,
                 chosen, tied, reason
    probes       run, model, file, artifact_id, artifact_sha256, target, threads, status, error,
                 started_utc, runtime_version, device, arch, emulated, governor, temp_c, throttled,
                 latency_ns (one list per process), load_ns, first_ns, peak_rss_bytes,
                 top1_agreement, drop_value
    failures     run, model, candidate, runtime, stage, kind, message

A file that is damaged is left out and named, and never hides the others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import codec
from edgekit.errors import EdgekitError, UsageError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

# Which files there are, and which of their fields are read; all as JSON, so that a field of an
# unexpected type becomes NULL in the tables below instead of an error.
_SOURCES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "manifest_files": ("manifest.json", ("model",)),
    "selection_files": (
        "selection.json",
        ("chosen", "tie_set", "budget", "objective", "candidates", "rule"),
    ),
    "failure_files": ("failures.json", ("failures",)),
    "probe_files": (
        "probes/*.json",
        (
            "request",
            "target",
            "status",
            "error",
            "facts_before",
            "facts_after",
            "latency_ns",
            "load_ns",
            "first_ns",
            "peak_rss_bytes",
            "top1_agreement",
            "drop",
            "runtime_version",
            "started_utc",
        ),
    ),
}

_TABLES = """
CREATE TABLE models AS SELECT run, model->>'name' AS model FROM manifest_files;

CREATE TABLE probes AS SELECT
    run, models.model, file,
    request->>'artifact_id' AS artifact_id,
    request->>'artifact_sha256' AS artifact_sha256,
    target->>'$' AS target,
    TRY_CAST(request->>'threads' AS INTEGER) AS threads,
    status->>'$' AS status,
    error->>'message' AS error,
    TRY_CAST(replace(started_utc->>'$', 'Z', '') AS TIMESTAMP) AS started_utc,
    runtime_version->>'$' AS runtime_version,
    facts_before->>'model' AS device,
    facts_before->>'arch' AS arch,
    TRY_CAST(facts_before->>'emulated' AS BOOLEAN) AS emulated,
    facts_before->>'governor' AS governor,
    TRY_CAST(facts_after->>'temp_c' AS DOUBLE) AS temp_c,
    TRY_CAST(facts_after->>'throttled' AS BIGINT) AS throttled,
    TRY_CAST(latency_ns AS BIGINT[][]) AS latency_ns,
    TRY_CAST(load_ns AS BIGINT[]) AS load_ns,
    TRY_CAST(first_ns AS BIGINT[]) AS first_ns,
    TRY_CAST(peak_rss_bytes AS BIGINT[]) AS peak_rss_bytes,
    TRY_CAST(top1_agreement->>'$' AS DOUBLE) AS top1_agreement,
    TRY_CAST("drop"->>'$' AS DOUBLE) AS drop_value
FROM probe_files JOIN models USING (run) ORDER BY run, file;

CREATE TABLE candidates AS
WITH listed AS (
    SELECT run, chosen, tie_set, unnest(TRY_CAST(candidates AS JSON[])) AS c,
        generate_subscripts(TRY_CAST(candidates AS JSON[]), 1) - 1 AS i
    FROM selection_files
)
SELECT run, models.model,
    c->>'artifact_id' AS artifact_id,
    c->>'runtime' AS runtime,
    c->>'precision' AS "precision",
    TRY_CAST(c->>'threads' AS INTEGER) AS threads,
    TRY_CAST(c->>'$.p50_ns.value' AS DOUBLE) / 1e6 AS p50_ms,
    TRY_CAST(c->>'$.p50_ns.low' AS DOUBLE) / 1e6 AS p50_low_ms,
    TRY_CAST(c->>'$.p50_ns.high' AS DOUBLE) / 1e6 AS p50_high_ms,
    TRY_CAST(c->>'$.p90_ns.value' AS DOUBLE) / 1e6 AS p90_ms,
    TRY_CAST(c->>'fps' AS DOUBLE) AS fps,
    TRY_CAST(c->>'drop' AS DOUBLE) AS drop_value,
    TRY_CAST(c->>'size_bytes' AS DOUBLE) / 1e6 AS size_mb,
    TRY_CAST(c->>'peak_rss_bytes' AS DOUBLE) / 1e6 AS peak_rss_mb,
    TRY_CAST(c->>'emulated' AS BOOLEAN) AS emulated,
    TRY_CAST(c->>'eligible' AS BOOLEAN) AS eligible,
    coalesce(TRY_CAST(chosen->>'$' AS INTEGER) = i, false) AS chosen,
    coalesce(list_contains(TRY_CAST(tie_set AS INTEGER[]), i), false) AS tied,
    c->>'reason' AS reason
FROM listed JOIN models USING (run) ORDER BY run, i;

CREATE TABLE failures AS
WITH listed AS (SELECT run, unnest(TRY_CAST(failures AS JSON[])) AS f FROM failure_files)
SELECT run, models.model,
    f->>'candidate' AS candidate, f->>'runtime' AS runtime, f->>'stage' AS stage,
    f->>'kind' AS kind, f->>'message' AS message
FROM listed JOIN models USING (run) ORDER BY run, candidate;

CREATE TABLE runs AS
WITH device AS (
    SELECT run, min(target) AS target, min(device) AS device, min(arch) AS arch,
        bool_or(emulated) AS emulated, count(*) AS probes FROM probes GROUP BY run
), best AS (SELECT * FROM candidates WHERE chosen),
verdict AS (
    SELECT run, TRY_CAST(budget->>'max_drop' AS DOUBLE) AS max_drop, rule->>'$' AS rule
    FROM selection_files
)
SELECT models.run,
    TRY_CAST(try_strptime(substr(models.run, 1, 16), '%Y%m%dT%H%M%SZ') AS TIMESTAMP)
        AS started_utc,
    models.model, device.target, device.device, device.arch, device.emulated,
    coalesce(device.probes, 0) AS probes,
    best.artifact_id AS chosen, best.runtime, best."precision", best.threads,
    best.p50_ms, best.p90_ms, best.drop_value, best.size_mb,
    best.peak_rss_mb, verdict.max_drop, verdict.rule
FROM models LEFT JOIN device USING (run) LEFT JOIN best USING (run) LEFT JOIN verdict USING (run)
ORDER BY models.run;
"""


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Rows of a query; ``problems`` names the damaged files that were left out."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    problems: tuple[str, ...] = ()

    def dicts(self) -> list[dict[str, Any]]:
        """One dict per row, with JSON values only: times as ISO 8601 text, the unknown as text."""
        return [
            {name: _jsonable(value) for name, value in zip(self.columns, row, strict=True)}
            for row in self.rows
        ]


def query_runs(
    root: Path,
    sql: str | None = None,
    *,
    model: str | None = None,
    target: str | None = None,
    limit: int | None = None,
) -> QueryResult:
    """Runs SQL over all runs in ``root``, or lists them newest first.

    Args:
        root: the folder that holds the run folders; may be absent.
        sql: a query over the tables above. It can read nothing but them.
        model, target, limit: filters of the list; not together with ``sql``.

    Raises:
        UsageError: the SQL is wrong.
    """
    import duckdb

    if sql is not None and (model, target, limit) != (None, None, None):
        raise UsageError("SQL and filters exclude each other.", remedy="Write the filter in SQL.")
    with duckdb.connect() as connection:
        problems = _load(connection, root)
        # What a user pastes shall not reach files or the network.
        connection.execute("SET enable_external_access = false; SET lock_configuration = true")
        parameters: list[Any] = []
        if sql is None:
            sql, parameters = _listing(model, target, limit)
        try:
            answer = connection.execute(sql, parameters)
            rows = answer.fetchall()
        except duckdb.Error as error:
            raise UsageError(
                f"The query failed: {str(error).strip()}",
                remedy="Tables: runs, candidates, probes, failures (docs of edgekit.runs).",
            ) from error
        columns = tuple(str(c[0]) for c in answer.description or ())
        return QueryResult(columns, tuple(rows), tuple(problems))


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    return value.isoformat() + "Z" if isinstance(value, datetime) else str(value)


def _listing(model: str | None, target: str | None, limit: int | None) -> tuple[str, list[Any]]:
    sql, parameters = "SELECT * FROM runs WHERE true", list[Any]()
    for column, value in (("model", model), ("target", target)):
        if value is not None:
            sql += f" AND {column} = ?"
            parameters.append(value)
    sql += " ORDER BY run DESC"
    if limit is not None:
        sql += " LIMIT ?"
        parameters.append(limit)
    return sql, parameters


def _load(connection: DuckDBPyConnection, root: Path) -> list[str]:
    """Fills the tables from the files."""
    import duckdb

    problems: list[str] = []
    found = sorted(root.iterdir()) if root.is_dir() else []
    runs = [p for p in found if not p.name.startswith(".") and (p / "manifest.json").is_file()]
    for table, (pattern, fields) in _SOURCES.items():
        files = [f for run in runs for f in sorted(run.glob(pattern)) if f.is_file()]
        try:
            _read_files(connection, table, files, fields)
        except duckdb.Error:
            good = [f for f in files if _is_readable(f, root, problems)]
            _read_files(connection, table, good, fields)
    connection.execute(_TABLES)
    return problems


def _read_files(
    connection: DuckDBPyConnection, table: str, files: Sequence[Path], fields: Sequence[str]
) -> None:
    columns = ", ".join(f'"{name}" JSON' for name in fields)
    connection.execute(f"CREATE OR REPLACE TABLE {table} (run VARCHAR, file VARCHAR, {columns})")
    if not files:
        return
    types = ", ".join(f"'{name}': 'JSON'" for name in fields)
    names = ", ".join(f'"{name}"' for name in fields)
    depth = 3 if table == "probe_files" else 2
    connection.execute(
        f"INSERT INTO {table} SELECT string_split(filename, '/')[-{depth}],"
        f" string_split(filename, '/')[-1], {names}"
        f" FROM read_json(?, columns = {{{types}}}, format = 'unstructured', records = true,"
        " filename = true, maximum_object_size = 67108864)",
        [[_no_glob(f) for f in files]],
    )


def _no_glob(path: Path) -> str:
    """The path as a DuckDB pattern that matches only itself."""
    return re.sub(r"([*?\[])", r"[\1]", path.absolute().as_posix())


def _is_readable(file: Path, root: Path, problems: list[str]) -> bool:
    try:
        document = codec.parse_json(file.read_bytes(), where=str(file.relative_to(root)))
    except EdgekitError as error:
        problems.append(error.message)
        return False
    if not isinstance(document, dict):
        problems.append(f"{file.relative_to(root)}: not a JSON object.")
        return False
    return True
