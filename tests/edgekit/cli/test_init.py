"""``edgekit init``: a file that loads, filled in from what the folder shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit.config import ProjectConfig
from tests.edgekit.cli.conftest import Done

Call = Callable[..., Done]
MODEL = "def build():\n    raise SystemExit('init must not run this')\n"


def test_it_fills_in_what_the_folder_shows(call: Call, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL + "def example_inputs():\n    pass\n")
    for name in ("calib", "val", "test"):
        (tmp_path / "data" / name).mkdir(parents=True)
    done = call("init", "--json")
    assert done.code == 0, done.err
    assert done.document["missing"] == []
    project = ProjectConfig.load(tmp_path)
    assert project.model.source == "net.py:build"
    assert project.model.inputs == ()
    assert project.data.calib == "data/calib"
    assert project.data.eval == "data/val"
    assert project.data.report == "data/test"
    assert set(project.targets) == {"local"}


def test_options_win_and_what_is_missing_is_named(call: Call, tmp_path: Path) -> None:
    done = call("init", "--model", "torchvision:resnet18", "--input", "1x3x192x256")
    assert done.code == 0, done.err
    assert "Put samples into photos/calib" in done.out
    project = ProjectConfig.load(tmp_path)
    assert project.model.name == "resnet18"
    assert project.model.inputs == ((1, 3, 192, 256),)
    assert project.preprocess is not None
    assert (project.preprocess.resize, project.preprocess.crop) == (219, (192, 256))


def test_a_model_without_example_inputs_gets_a_shape_to_start_from(
    call: Call, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    assert call("init").code == 0
    assert ProjectConfig.load(tmp_path).model.inputs == ((1, 3, 224, 224),)


def test_paths_with_quotes_stay_whole(call: Call, tmp_path: Path) -> None:
    name = 'my "best" ä\\model.py:build'
    assert call("init", "--model", name, "--weights", 'w"1.pth').code == 0
    project = ProjectConfig.load(tmp_path)
    assert project.model.source == name
    assert project.model.weights == tmp_path / 'w"1.pth'


def test_it_does_not_overwrite_without_force(call: Call, tmp_path: Path) -> None:
    (tmp_path / "edgekit.toml").write_text("# mine\n")
    done = call("init", "--model", "m.py:f")
    assert (done.code, "--force" in done.err) == (2, True)
    assert (tmp_path / "edgekit.toml").read_text() == "# mine\n"
    assert call("init", "--model", "m.py:f", "--force").code == 0
    assert "# mine" not in (tmp_path / "edgekit.toml").read_text()


@pytest.mark.parametrize("files", [[], ["a.py", "b.py"]])
def test_no_model_or_several_need_a_name(files: list[str], call: Call, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_text(MODEL)
    done = call("init")
    assert (done.code, "--model" in done.err) == (2, True)
    assert not (tmp_path / "edgekit.toml").exists()


def test_a_wrong_shape_writes_nothing(call: Call, tmp_path: Path) -> None:
    done = call("init", "--model", "m.py:f", "--input", "3,224")
    assert (done.code, "--input: '3,224' is not a shape" in done.err) == (2, True)
    assert not (tmp_path / "edgekit.toml").exists()


def test_a_file_that_is_no_python_is_passed_over(call: Call, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def build(:\n")
    (tmp_path / "net.py").write_text(MODEL)
    assert call("init", "--json").document["model"] == "net.py:build"
