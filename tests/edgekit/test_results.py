"""Run folders: written once, read back, selected again; many of them queried, damage included."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit import codec, results
from edgekit.errors import BundleError, UsageError
from edgekit.results import RunDir, query_runs
from edgekit.select import select
from edgekit.types import Budget, ProbeResult
from tests.fixtures.made_up import artifact, demo, manifest, probe

BUDGET = Budget(max_drop=0.1)


def write_run(root: Path, *, target: str = "made-up-board") -> RunDir:
    bundle, probes, failures = demo()
    run = RunDir.create(root, bundle.model.name, target, codec.to_json(bundle, indent=2))
    for one in probes:
        run.append_probe(replace(one, target=target))
    run.write_failures(failures)
    run.write_selection(select(bundle, probes, BUDGET, "p50", failures))
    return run


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    bundle, probes, failures = demo()
    record = results.load(run.path)
    assert record.manifest == bundle
    assert record.probes == tuple(probes)
    assert record.failures == tuple(failures)
    assert record.selection == select(bundle, probes, BUDGET, "p50", failures)
    assert record.problems == () and record.target == "made-up-board"
    assert (run.path / "manifest.json").read_text() == codec.to_json(bundle, indent=2)


def test_a_name_cannot_leave_the_root_and_two_runs_of_a_second_do_not_meet(tmp_path: Path) -> None:
    text = codec.to_json(demo()[0])
    made = [RunDir.create(tmp_path, "../m", "ssh://pi@10.0.0.7:22", text).path for _ in range(3)]
    assert len({p.name for p in made}) == 3
    assert all(p.parent == tmp_path and p.name.count("ssh_pi_10.0.0.7_22") == 1 for p in made)
    assert RunDir.create(tmp_path, "/", "..", text).path.name.endswith("Z-x-x")


def test_probes_are_appended_and_never_replaced(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    before = {p.name: p.read_bytes() for p in (run.path / "probes").iterdir()}
    (run.path / "probes" / "0002-efficientnet_lite0-executorch-fp32-t2.json").unlink()
    again = run.append_probe(demo()[1][0])
    assert again.name not in before
    for name, content in before.items():
        if not name.startswith("0002"):
            assert (run.path / "probes" / name).read_bytes() == content


def test_the_selection_is_derived_and_can_be_made_again(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    stored = results.load(run.path).selection
    assert results.reselect(run.path) == stored
    tight = results.reselect(run.path, Budget(max_drop=0.0), "p90")
    assert tight.chosen is not None and tight.objective == "p90"
    assert tight.candidates[tight.chosen].precision == "fp32"
    assert results.load(run.path).selection == tight
    assert results.reselect(run.path) == tight
    (run.path / "selection.json").unlink()
    with pytest.raises(UsageError, match="take the budget from") as caught:
        results.reselect(run.path)
    assert "--max-drop" in caught.value.remedy
    assert results.reselect(run.path, BUDGET) == stored


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"schema": 1}', "\x00\xff", "null"])
def test_damaged_files_are_left_out_and_named(tmp_path: Path, content: str) -> None:
    run = write_run(tmp_path)
    damaged = sorted((run.path / "probes").iterdir())[0]
    damaged.write_text(content)
    (run.path / "selection.json").write_text(content)
    record = results.load(run.path)
    assert len(record.probes) == 13 and record.selection is None
    assert len(record.problems) == 2
    assert record.problems[0].startswith(damaged.name)
    assert results.reselect(run.path, BUDGET).chosen is not None


def test_a_newer_probe_schema_is_left_out_and_named(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    file = sorted((run.path / "probes").iterdir())[0]
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema": 2}))
    record = results.load(run.path)
    assert len(record.probes) == 13
    assert "schema 2 is not what this edgekit reads" in record.problems[0]


def test_a_run_without_a_sound_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run"):
        results.load(tmp_path)
    run = write_run(tmp_path)
    (run.path / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match=r"manifest\.json: schema"):
        results.load(run.path)


def test_find_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no runs"):
        results.find_run(tmp_path / "none")
    first, second = write_run(tmp_path, target="a"), write_run(tmp_path, target="b")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "zz-no-run").mkdir()
    assert results.run_names(tmp_path) == (first.path.name, second.path.name)
    assert results.find_run(tmp_path) == second.path
    assert results.find_run(tmp_path, "latest") == second.path
    assert results.find_run(tmp_path, first.path.name) == first.path
    assert results.find_run(tmp_path / "elsewhere", str(first.path)) == first.path
    with pytest.raises(UsageError, match="No run"):
        results.find_run(tmp_path, "nope")
    with pytest.raises(UsageError, match="More than one"):
        results.find_run(tmp_path, first.path.name[:8])


def test_runs_are_listed_with_their_verdict_newest_first(tmp_path: Path) -> None:
    write_run(tmp_path, target="a")
    other = write_run(tmp_path, target="b")
    (other.path / "selection.json").unlink()
    rows = query_runs(tmp_path).dicts()
    assert [r["target"] for r in rows] == ["b", "a"]
    assert rows[0]["chosen"] is None and rows[0]["probes"] == 14
    assert rows[1]["chosen"] == "efficientnet_lite0-executorch-static_wi8_ai8"
    assert rows[1]["threads"] == 2 and 25 < rows[1]["p50_ms"] < 27
    assert rows[1]["max_drop"] == 0.1 and rows[1]["device"] == "Made-up board rev 1.5"
    assert rows[1]["started_utc"].startswith("20") and json.dumps(rows)
    assert [r["target"] for r in query_runs(tmp_path, target="a").dicts()] == ["a"]
    assert query_runs(tmp_path, model="other").rows == ()
    assert len(query_runs(tmp_path, limit=1).rows) == 1


def test_sql_sees_candidates_probes_and_failures(tmp_path: Path) -> None:
    run = write_run(tmp_path)

    def rows(sql: str) -> tuple[tuple[object, ...], ...]:
        return query_runs(tmp_path, sql).rows

    stored = results.load(run.path).selection
    assert stored is not None
    assert rows("SELECT count(*), count_if(chosen), count_if(tied) FROM candidates") == (
        (15, 1, 2),
    )
    reason = (
        "SELECT reason FROM candidates WHERE precision = 'int8' AND threads = 2 AND NOT eligible"
    )
    assert rows(reason) == (("drop 0.208 > budget 0.1",),)
    assert rows("SELECT error FROM probes WHERE status = 'failed'")[0][0] is not None
    kept = rows("SELECT len(latency_ns), len(latency_ns[1]), run FROM probes LIMIT 1")
    assert kept == ((5, 60, run.path.name),)
    assert rows("SELECT stage, kind FROM failures") == (("export", "signal"),)


def test_no_runs_at_all_is_an_empty_answer(tmp_path: Path) -> None:
    assert query_runs(tmp_path / "none").rows == ()
    assert query_runs(tmp_path, "SELECT count(*) FROM probes").rows == ((0,),)


def test_one_damaged_file_does_not_hide_the_others(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    folder = run.path / "probes"
    (folder / "0098-cut.json").write_text('{"schema": 1, "request": {')
    (folder / "0099-list.json").write_text("[]")
    (folder / "0097-bytes.json").write_bytes(b"\xff\xfe\x00")
    (folder / "0096-types.json").write_text('{"request": 3, "latency_ns": "no", "drop": {}}')
    found = query_runs(tmp_path, "SELECT count(*), count(artifact_id) FROM probes")
    assert found.rows == ((15, 14),)
    assert len(found.problems) == 3
    assert all("/probes/009" in p for p in found.problems)


def test_a_root_with_pattern_characters(tmp_path: Path) -> None:
    root = tmp_path / "a[b]*?"
    write_run(root)
    assert query_runs(root, "SELECT count(*) FROM probes").rows == ((14,),)


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELEKT 1", "syntax error"),
        ("SELECT * FROM probe", 'Did you mean "probes"'),
        ("SELECT * FROM read_text('{secret}')", "disabled by configuration"),
        ("COPY runs TO '{secret}'", "disabled by configuration"),
        ("SET enable_external_access = true", "locked"),
    ],
)
def test_wrong_and_outgoing_sql_is_refused(tmp_path: Path, sql: str, words: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    with pytest.raises(UsageError, match=words) as caught:
        query_runs(tmp_path / "runs", sql.format(secret=secret))
    assert "candidates" in caught.value.remedy
    assert secret.read_text() == "x"


def test_sql_and_filters_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exclude"):
        query_runs(tmp_path, "SELECT 1", model="m")


def test_reselect_takes_a_newer_result_of_the_same_candidate(tmp_path: Path) -> None:
    of = artifact("tflite", "int8")
    run = RunDir.create(tmp_path, "m", "t", codec.to_json(manifest([of])))
    results_of_two: list[ProbeResult] = [
        probe(of, ms=9.0, started="2025-11-02T10:16:00Z"),
        probe(of, ms=4.0, started="2025-11-02T10:15:00Z"),
    ]
    for one in results_of_two:
        run.append_probe(one)
    found = results.reselect(run.path, BUDGET)
    assert found.candidates[0].p50_ns is not None and found.candidates[0].p50_ns.value > 8e6
