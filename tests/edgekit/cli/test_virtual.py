"""What a user without a board does: an emulated one, from its start to its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.targets.runtimes import cache_dir
from tests.edgekit.cli.conftest import execute
from tests.fixtures.tiny_project import make_project
from tests.fixtures.virtual import make_home

#: Read before any test points the cache elsewhere.
CACHE = cache_dir()
NAME = "virtual-rpi4"
INT8 = "tiny-executorch-static_wi8_ai8"


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[str]:
    """A cache in which there is no device yet, with the runtimes of the user's own."""
    CACHE.mkdir(parents=True, exist_ok=True)
    make_home(tmp_path / "cache")
    for path in CACHE.iterdir():
        if path.name != "virtual":
            (tmp_path / "cache" / "edgekit" / path.name).symlink_to(path)
    folder = str(tmp_path / "cache")
    yield folder
    execute(tmp_path, "virtual", "stop", XDG_CACHE_HOME=folder)


@pytest.mark.timeout(1200)
def test_the_whole_way_without_a_board(tmp_path: Path, cache: str) -> None:
    project = make_project(tmp_path, ["executorch"])

    def edgekit(*arguments: str) -> Any:
        done = execute(project, *arguments, "--json", XDG_CACHE_HOME=cache)
        assert done.code == 0, done.err
        return done.document

    quantized = edgekit("quantize")
    assert quantized["within_budget"] == [INT8]
    assert edgekit("virtual", "list") == {"devices": []}
    assert edgekit("virtual", "start", "rpi4")["device"]["name"] == NAME
    deployed = edgekit("deploy", "--target", NAME)
    candidates = deployed["selection"]["candidates"]
    assert {c["artifact_id"] for c in candidates} == {"tiny-executorch-fp32", INT8}
    assert all(c["eligible"] and c["emulated"] for c in candidates)
    assert "Emulated: these are no latencies of the device" in deployed["selection"]["rule"]
    counted = edgekit("probe", "--count-instructions", "--target", NAME)
    assert counted["emulated"]
    float32, int8 = (
        next(c["instructions"] for c in counted["counts"] if c["artifact_id"] == name)
        for name in ("tiny-executorch-fp32", INT8)
    )
    assert float32 > 5000 and int8 > 5000 and float32 != int8
    assert edgekit("status", "--target", NAME, "--verify")["active"]
    assert [d["name"] for d in edgekit("virtual", "list")["devices"]] == [NAME]
    assert edgekit("virtual", "stop") == {"stopped": [NAME]}
    gone = execute(project, "deploy", "--target", NAME, XDG_CACHE_HOME=cache)
    assert gone.code == 4 and "edgekit virtual start rpi4" in gone.err
