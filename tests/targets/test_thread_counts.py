"""With how many threads a device is measured: as asked for, else as its profile says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.faults.bundles import Release
from edgekit import pipeline
from edgekit.bundle import Bundle
from edgekit.config import DeviceConfig, ProbeConfig
from edgekit.targets import profile
from edgekit.types import Budget, Target


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """This machine, of a kind that is probed with one thread, or with more than there are CPUs."""
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "single.toml").write_text('description = "One thread"\nthreads = [1, 4096]\n')
    monkeypatch.setattr(profile, "_FOLDER", folder)
    return Target("here", "local", "", str(tmp_path / "root"), "single")


@pytest.mark.parametrize(("asked", "measured"), [((), [1]), ((2, 1), [2, 1])])
def test_what_nobody_asks_for_is_the_profiles_as_far_as_there_are_cpus(
    asked: tuple[int, ...],
    measured: list[int],
    target: Target,
    releases: list[Release],
    tmp_path: Path,
) -> None:
    config = DeviceConfig(
        root=tmp_path,
        bundle=releases[0].path,
        budget=Budget(max_drop=0.2),
        probe=ProbeConfig(threads=asked, processes=1, budget_s=0.02),
    )
    with Bundle.open(releases[0].path) as bundle:
        outcome = pipeline.probe(bundle, target, config)
    assert [probe.request.threads for probe in outcome.record.probes] == measured
