"""The main job, once, as a user runs it: a trained model, real photos, four runtimes, this machine.

Everything is asserted of what the command line prints and leaves on disk. The measurements are
shorter than the example's own (see ``QUICK``), so no latency is judged here.
"""

from __future__ import annotations

import hashlib
import html
import os
import re
from pathlib import Path

import pytest

from edgekit import results
from tests.fixtures.main_job import MODEL, QUICK, RUNTIMES, Job, artifact

# The first user of the fixture waits for all of it.
pytestmark = pytest.mark.timeout(1800)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_it_ends_well(job: Job) -> None:
    assert job.first.code == 0, job.first.err
    document = job.first.document
    assert document["failures"] == []
    assert not document["quantize"]["reused"]
    assert {a["id"] for a in document["quantize"]["artifacts"]} == {
        artifact(runtime, recipe) for runtime in RUNTIMES for recipe in ("fp32", "static_wi8_ai8")
    }
    assert "Traceback" not in job.first.err
    assert not (job.folder.parent / "home" / ".edgekit").exists(), "the target names its folder"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_keeps_the_quality_on_photos_that_nothing_was_tuned_on(job: Job, runtime: str) -> None:
    (report,) = (e for e in job.manifest.evals if e.role == "report")
    assert report.n >= 200
    result = job.on_report_set(artifact(runtime, "static_wi8_ai8"))
    assert min(output.sqnr_db for output in result.outputs) >= 20
    assert result.top1_agreement is not None and result.top1_agreement >= 0.9


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_float_twins_are_the_float_model(job: Job, runtime: str) -> None:
    result = job.on_report_set(artifact(runtime, "fp32"))
    assert min(output.sqnr_db for output in result.outputs) >= 90
    assert result.top1_agreement == 1.0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_is_small_and_really_int8(job: Job, runtime: str) -> None:
    sizes = {a.id: a.size_bytes for a in job.manifest.artifacts}
    int8 = artifact(runtime, "static_wi8_ai8")
    assert sizes[int8] <= 0.29 * sizes[artifact(runtime, "fp32")]
    inspection = next(a.inspection for a in job.manifest.artifacts if a.id == int8)
    assert inspection is not None and inspection.int8_mac_share is not None
    assert inspection.int8_mac_share - (inspection.dynamic_mac_share or 0.0) >= 0.95
    # The file itself, opened by another command.
    file = next((job.folder / "bundle" / "artifacts").glob(f"{int8}.*"))
    found = job.edgekit("inspect", file, "--json")
    assert found.code == 0, found.err
    assert found.document["inspection"]["int8_mac_share"] == inspection.int8_mac_share


def test_the_three_sets_share_nothing(job: Job) -> None:
    ids = {evaluation.set_id for evaluation in job.manifest.evals}
    ids |= {a.calibration_id for a in job.manifest.artifacts if a.precision == "int8"}
    assert len(ids) == 3
    photos = [
        {sha256(path) for path in (job.folder / "photos" / name).iterdir()}
        for name in ("calib", "choose", "test")
    ]
    assert sum(map(len, photos)) == len(set.union(*photos)) >= 200 + 2 * 16


def test_the_selection_gives_its_reasons(job: Job) -> None:
    selection = job.deploy["selection"]
    assert selection["budget"]["max_drop"] == 0.1
    assert len(selection["candidates"]) == 16
    assert job.chosen["eligible"] and job.chosen["drop"] <= 0.1
    assert selection["chosen"] in selection["tie_set"]
    assert selection["rule"]
    for candidate in selection["candidates"]:
        assert candidate["reason"], candidate["artifact_id"]
        assert not candidate["emulated"]
        if not candidate["eligible"]:
            assert re.search("drop", candidate["reason"]), candidate["reason"]
    fastest = min(c["p50_ns"]["value"] for c in selection["candidates"] if c["eligible"])
    tied = [selection["candidates"][i]["p50_ns"] for i in selection["tie_set"]]
    assert any(interval["value"] == fastest for interval in tied)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("recipe", ["fp32", "static_wi8_ai8"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_probes_are_raw_and_checked(job: Job, runtime: str, recipe: str, threads: int) -> None:
    probe = job.probes[artifact(runtime, recipe), threads]
    assert (probe.status, probe.error, probe.target) == ("ok", None, "local")
    assert len(probe.latency_ns) == len(probe.load_ns) == len(probe.first_ns) == 2
    assert len(probe.peak_rss_bytes) == 2 and min(probe.peak_rss_bytes) > 10_000_000
    for process in probe.latency_ns:
        assert len(process) >= 10 and min(process) > 100_000
    assert probe.golden_n == job.manifest.golden.n == 36
    for check in probe.golden:
        # The device runs the file as the host did, and the host's figures hold there.
        assert check.sqnr_db_host >= 30
        assert check.sqnr_db_float >= (20 if recipe == "static_wi8_ai8" else 90)
    assert probe.top1_agreement is not None and probe.drop == pytest.approx(
        1 - probe.top1_agreement
    )
    assert probe.runtime_version and probe.facts_before.cpu_count > 0


def test_what_was_chosen_is_active_by_one_link(job: Job) -> None:
    activation = job.deploy["activation"]
    assert activation["artifact_id"] == job.chosen["artifact_id"]
    assert activation["threads"] == job.chosen["threads"]
    assert activation["previous"] is None
    digest = job.first.document["quantize"]["digest"]
    assert digest.startswith(activation["release"])
    current = job.device / "current" / MODEL
    assert os.readlink(current) == f"../activations/{MODEL}/1"
    release = (current / "release").resolve()
    assert release == job.device / "releases" / MODEL / activation["release"]
    assert not (current / "previous").exists()
    store = job.device / "store" / "sha256"
    links = [path for path in release.rglob("*") if path.is_symlink()]
    assert {path.resolve().parent.parent for path in links} == {store}
    assert (release / "manifest.json").resolve().name == digest
    (active,) = (a for a in job.manifest.artifacts if a.id == activation["artifact_id"])
    assert (release / active.path).resolve().name == active.sha256


def test_the_store_is_addressed_by_content(job: Job) -> None:
    blobs = [path for path in (job.device / "store" / "sha256").rglob("*") if path.is_file()]
    for blob in blobs:
        assert blob.name == sha256(blob)
        assert blob.parent.name == blob.name[:2]
        assert blob.stat().st_mode & 0o222 == 0, "immutable"
    assert {a.sha256 for a in job.manifest.artifacts} <= {blob.name for blob in blobs}
    pushed = job.deploy["pushed"]
    assert pushed["present_blobs"] == 0 and 8 < pushed["sent_blobs"] <= len(blobs)
    runtimes = {path.name.split("-")[0] for path in (job.device / "runtimes").iterdir()}
    assert runtimes == set(RUNTIMES)


def test_status_says_so(job: Job) -> None:
    done = job.edgekit("status", "--verify", "--json")
    assert done.code == 0, done.err
    assert done.document["problems"] == []
    (active,) = done.document["active"]
    assert active == job.deploy["activation"]
    shown = job.edgekit("status")
    assert shown.code == 0
    recipe = active["artifact_id"].rpartition("-")[2]
    (line,) = (line for line in shown.out.splitlines() if line.startswith(MODEL))
    assert {recipe, active["runtime"], str(active["threads"])} <= set(line.split())


def test_there_is_nothing_to_roll_back_to(job: Job) -> None:
    done = job.edgekit("rollback", "--json")
    assert done.code == 4
    error = done.document["error"]
    assert "previous" in error["message"] and MODEL in error["message"]
    assert "edgekit: " in done.err
    assert os.readlink(job.device / "current" / MODEL) == f"../activations/{MODEL}/1"


def test_results_list_the_run(job: Job) -> None:
    done = job.edgekit("results", "--json")
    assert done.code == 0, done.err
    rows = {row["run"]: row for row in done.document["rows"]}
    row = rows[Path(job.deploy["run"]).name]
    assert (row["model"], row["target"], row["probes"]) == (MODEL, "local", 16)
    assert row["p50_ms"] == pytest.approx(job.chosen["p50_ns"]["value"] / 1e6)


def test_a_tighter_budget_is_another_selection(job: Job) -> None:
    name = Path(job.deploy["run"]).name
    done = job.edgekit("select", name, "--max-drop", "0.0001", "--json")
    assert done.code == 0, done.err
    selection = done.document["selection"]
    assert selection["candidates"][selection["chosen"]]["drop"] <= 0.0001
    lossy = [c for c in selection["candidates"] if c["drop"] > 0.0001]
    assert all(not c["eligible"] and "drop" in c["reason"] for c in lossy)
    small = job.edgekit("select", name, "--max-drop", "0.1", "--max-size-mb", "10", "--json")
    assert small.code == 0, small.err
    for candidate in small.document["selection"]["candidates"]:
        assert candidate["eligible"] == (candidate["precision"] == "int8")
        assert candidate["eligible"] or "10 MB" in candidate["reason"]
    none = job.edgekit("select", name, "--max-rss-mb", "1", "--json")
    assert none.code == 3 and none.document["selection"]["chosen"] is None
    assert "Nothing keeps the budget" in none.err
    # As it was, for whoever comes next; a limit that is not given stays.
    wide = ("--max-rss-mb", "100000", "--max-size-mb", "100000")
    back = job.edgekit("select", name, *wide, "--json")
    assert back.code == 0
    now = back.document["selection"]
    assert now["candidates"][now["chosen"]]["artifact_id"] == job.chosen["artifact_id"]


def test_the_report_needs_no_network(job: Job) -> None:
    done = job.edgekit("report", Path(job.deploy["run"]).name, "--json")
    assert done.code == 0, done.err
    page = Path(done.document["report"]).read_text("utf-8")
    assert all(runtime in page for runtime in RUNTIMES)
    selection = results.load(Path(job.deploy["run"])).selection
    assert selection is not None and selection.rule in html.unescape(page)
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=[\"']?https?:", page)


def test_inspect_shows_the_bundle(job: Job) -> None:
    done = job.edgekit("inspect", "bundle", "--json")
    assert done.code == 0, done.err
    assert len(done.document["manifest"]["artifacts"]) == 8
    assert done.document["digest"] == job.first.document["quantize"]["digest"]


def test_a_probe_measures_and_activates_nothing(job: Job) -> None:
    wanted = artifact("tflite", "static_wi8_ai8")
    quick = ("--threads", "1", "--processes", "1", "--budget-s", "0.1")
    done = job.edgekit("probe", "--artifact", wanted, *quick, "--json")
    assert done.code == 0, done.err
    document = done.document
    assert document["activation"] is None
    assert document["pushed"]["sent_blobs"] == 0, "the device has it all"
    measured = [c for c in document["selection"]["candidates"] if c["p50_ns"]]
    assert [c["artifact_id"] for c in measured] == [wanted]
    assert os.readlink(job.device / "current" / MODEL) == f"../activations/{MODEL}/1"


def state(*roots: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of every file and link."""
    paths = [path for root in roots for path in root.rglob("*") if not path.is_dir()]
    return {path: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in paths}


def test_a_second_run_does_nothing_and_ends_in_seconds(job: Job) -> None:
    kept = [job.device / name for name in ("store", "releases", "activations", "runtimes")]
    kept += [job.folder / "bundle", Path(job.deploy["run"]) / "probes"]
    before, runs = state(*kept), results.run_names(job.folder / "runs")
    link = (job.device / "current" / MODEL).lstat().st_ino
    done = job.edgekit("run", "--json", *QUICK)
    assert done.code == 0, done.err
    assert done.seconds < 20
    document = done.document
    assert document["quantize"]["reused"]
    (deploy,) = document["deploys"]
    assert deploy["reused"] and deploy["pushed"] is None
    assert deploy["run"] == job.deploy["run"]
    assert deploy["activation"] == job.deploy["activation"]
    assert state(*kept) == before and results.run_names(job.folder / "runs") == runs
    assert (job.device / "current" / MODEL).lstat().st_ino == link


def test_what_people_see_fits_100_columns(job: Job) -> None:
    done = job.edgekit("run", *QUICK)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    table = [line for line in lines if not line.startswith(("Run: ", "Bundle: ", "Report: "))]
    assert max(map(len, table)) <= 100
    assert any(line.startswith("Active on local: ") for line in lines)
    assert "torchscript (legacy)" in done.out
    assert "\x1b" not in done.out, "no colours in a pipe"
