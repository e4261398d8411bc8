"""Commands over recorded runs and finished files: select, results, inspect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit import codec
from edgekit.bundle import write_bundle
from edgekit.results import RunDir
from edgekit.select import select
from edgekit.types import Budget
from tests.edgekit.cli.conftest import Done
from tests.fixtures.bundles import bundle_parts
from tests.fixtures.made_up import demo

Call = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A recorded run in the runs folder of an empty project."""
    manifest, probes, failures = demo()
    run = RunDir.create(tmp_path / "runs", manifest.model.name, "board", codec.to_json(manifest))
    for probe in probes:
        run.append_probe(probe)
    run.write_failures(failures)
    run.write_selection(select(manifest, probes, Budget(0.1), "p50", failures))
    return run.path


def test_select_again_within_another_budget(run: Path, call: Call) -> None:
    before = call("select", "--json")
    assert before.code == 0, before.err
    selection = before.document["selection"]
    assert selection["budget"]["max_drop"] == 0.1
    assert selection["chosen"] is not None
    roomy = call("select", run.name, "--max-size-mb", "1000", "--json").document["selection"]
    assert roomy["budget"] == {"max_drop": 0.1, "max_size_bytes": 10**9, "max_rss_bytes": None}
    assert (roomy["chosen"], roomy["objective"]) == (selection["chosen"], "p50")
    other = call("select", "--objective", "p90", "--json").document["selection"]
    assert other["objective"] == "p90"
    assert other["budget"] == roomy["budget"], "what is not given stays"


def test_select_with_nothing_eligible_is_3_and_still_shows_why(run: Path, call: Call) -> None:
    done = call("select", "latest", "--max-rss-mb", "0.001")
    assert done.code == 3
    assert "Nothing keeps the budget" in done.err
    assert "executorch" in done.out.lower()
    assert call("select", "--json").document["selection"]["chosen"] is None


def test_select_says_where_there_is_nothing_to_select(call: Call) -> None:
    done = call("select")
    assert (done.code, "There are no runs" in done.err) == (2, True)
    assert call("select", "--max-drop", "1.5").code == 2


def test_results_lists_runs_and_answers_sql(run: Path, call: Call) -> None:
    listed = call("results", "--json").document
    assert [row["run"] for row in listed["rows"]] == [run.name]
    assert call("results", "--model", "another", "--json").document["rows"] == []
    assert run.name[:16] in call("results").out
    counted = call("results", "--sql", "SELECT count(*) AS n FROM probes", "--json").document
    assert counted["rows"] == [{"n": len(demo()[1])}]
    wrong = call("results", "--sql", "SELECT nothing FROM nowhere")
    assert (wrong.code, "The query failed" in wrong.err) == (2, True)


def test_results_names_damaged_files_and_goes_on(run: Path, call: Call) -> None:
    (run / "selection.json").write_text("{")
    document = call("results", "--json").document
    assert [row["run"] for row in document["rows"]] == [run.name]
    assert any("selection.json" in problem for problem in document["problems"])


def test_inspect_a_bundle(tmp_path: Path, call: Call) -> None:
    bundle = write_bundle(tmp_path / "bundle", **bundle_parts(tmp_path / "parts"))
    document = call("inspect", "bundle", "--json").document
    assert document["digest"] == bundle.digest
    assert document["manifest"]["model"]["name"] == "small"
    shown = call("inspect", "bundle").out
    assert all(artifact.id in shown for artifact in bundle.manifest.artifacts)
    bundle.pack(tmp_path / "bundle.tar")
    assert call("inspect", "bundle.tar", "--json").document["digest"] == bundle.digest


def test_inspect_refuses_a_damaged_bundle_and_a_damaged_file(tmp_path: Path, call: Call) -> None:
    bundle = write_bundle(tmp_path / "bundle", **bundle_parts(tmp_path / "parts"))
    bundle.file(bundle.manifest.artifacts[0].path).write_bytes(b"x")
    assert call("inspect", "bundle").code == 2
    (tmp_path / "net.tflite").write_bytes(b"\x08\0\0\0TFL3")
    done = call("inspect", "net.tflite", "--json")
    assert (done.code, done.document["error"]["exit_code"]) == (2, 2)


def test_report_of_a_run_and_of_a_bundle(run: Path, tmp_path: Path, call: Call) -> None:
    done = call("report", "--json")
    assert done.document["report"] == str(run / "report.html")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "efficientnet_lite0" in page
    write_bundle(tmp_path / "bundle", **bundle_parts(tmp_path / "parts"))
    assert call("report", "bundle", "-o", "page.html").out == f"Report: {tmp_path}/page.html\n"
    assert "small" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert call("report", "nothing").code == 2
