"""A saved recipe, replayed on the same model and samples elsewhere, makes the same files again."""

from __future__ import annotations

import re
from pathlib import Path
from zipfile import ZipFile

import pytest

from edgekit import registry
from edgekit.bundle import Bundle
from edgekit.types import Artifact
from tests.edgekit.cli.conftest import execute
from tests.fixtures.tiny_project import make_project

#: TorchScript numbers its classes by what the process made before, and writes those names, traces
#: of its sources and a hash over them into the file.
DETERMINISTIC = sorted(registry.RUNTIMES.keys() - {"torchscript"})

_NUMBER = re.compile(rb"___torch_mangle_\d+\.?")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The bundle of a project, and what its recipes make of a copy of the project."""
    bundles: list[Path] = []
    for name in ("first", "again"):
        # A workspace of its own: nothing that the first one made can be found again.
        project = make_project(tmp_path_factory.mktemp(name), registry.RUNTIMES)
        done = execute(project, "quantize", *(["--replay", str(bundles[0])] if bundles else []))
        assert done.code == 0, done.err
        bundles.append(project / "bundle")
    return bundles[0], bundles[1]


def artifacts(bundle: Path, runtime: str) -> dict[str, Artifact]:
    with Bundle.open(bundle) as found:
        return {a.id: a for a in found.manifest.artifacts if a.runtime == runtime}


@pytest.mark.parametrize("runtime", DETERMINISTIC)
def test_a_replay_makes_the_same_bytes(made: tuple[Path, Path], runtime: str) -> None:
    first, again = (artifacts(bundle, runtime) for bundle in made)
    assert len(first) == 2 and first.keys() == again.keys()
    assert {i: a.sha256 for i, a in first.items()} == {i: a.sha256 for i, a in again.items()}


def test_a_replay_to_torchscript_differs_in_names_only(made: tuple[Path, Path]) -> None:
    for artifact in artifacts(made[0], "torchscript").values():
        first, again = (records(bundle / artifact.path) for bundle in made)
        assert first == again


def records(path: Path) -> dict[str, bytes]:
    """What a TorchScript file holds, without numbered names and what is only for debugging."""
    with ZipFile(path) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    return {
        _NUMBER.sub(b"", name.encode()).decode(): _NUMBER.sub(b"", content)
        for name, content in found.items()
        if not name.endswith((".debug_pkl", "serialization_id"))
    }


def test_a_replay_of_static_int8_needs_its_samples(made: tuple[Path, Path]) -> None:
    project = made[1].parent
    toml = project / "edgekit.toml"
    toml.write_text(toml.read_text().replace('calib = "calib.npz"', ""))
    done = execute(project, "quantize", "--replay", str(made[0]))
    assert done.code == 2 and "needs real samples to calibrate on" in done.err, done.err


@pytest.mark.parametrize("runtime", sorted(registry.RUNTIMES))
def test_a_replay_keeps_the_recipe_and_searches_nothing(
    made: tuple[Path, Path], runtime: str
) -> None:
    first, again = (artifacts(bundle, runtime) for bundle in made)
    assert [a.recipe for a in first.values()] == [a.recipe for a in again.values()]
    with Bundle.open(made[1]) as bundle:
        assert not any(bundle.recipe_log.ladders.values())
