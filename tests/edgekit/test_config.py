"""edgekit.toml and options: what is read, what wins, and where a complaint points."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.config import DeviceConfig, ProjectConfig
from edgekit.config_values import anchored, default_model_name, parse_shape
from edgekit.errors import ConfigError, UsageError
from edgekit.toml_reader import key_lines
from edgekit.types import Budget, Preprocess

FULL = """\
schema = 1
[model]
name = "net"
source = "model.py:build"
weights = "w/weights.pth"
input = ["1x3x224x224"]
example = "model.py:example_inputs"
[preprocess]
preset = "imagenet"
resize = 240
crop = [192, 200]
[data]
calib = "photos/calib"
eval = "photos/choose"
metric = "agreement"
[quantize]
runtimes = ["onnx", "tflite"]
recipes = ["static_wi8_ai8"]
bundle = "out/bundle"
timeout_s = 60
memory_mb = 1000
[budget]
max_drop = 0.1
max_size_mb = 5.5
[probe]
threads = [1, 4]
processes = 3
objective = "p90"
[targets.pi]
transport = "ssh"
address = "ssh://pi@raspberrypi.local:22"
profile = "rpi4"
[targets.pi.options]
port = 22
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "edgekit.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        ProjectConfig.load(write(folder, text))
    return caught.value.message


def test_a_full_file(tmp_path: Path) -> None:
    project = ProjectConfig.load(write(tmp_path, FULL))
    assert project.root == tmp_path
    assert project.model.name == "net"
    assert project.model.weights == tmp_path / "w" / "weights.pth"
    assert project.model.inputs == ((1, 3, 224, 224),)
    assert project.preprocess is not None
    assert (project.preprocess.resize, project.preprocess.crop) == (240, (192, 200))
    assert project.preprocess.mean == (0.485, 0.456, 0.406)
    assert (project.data.calib, project.data.report) == ("photos/calib", None)
    assert project.quantize.runtimes == ("onnx", "tflite")
    assert project.quantize.bundle == tmp_path / "out" / "bundle"
    assert project.quantize.memory_bytes == 1_000_000_000
    assert project.budget == Budget(max_drop=0.1, max_size_bytes=5_500_000)
    assert (project.probe.threads, project.probe.objective) == ((1, 4), "p90")
    assert project.targets["pi"].options == {"port": "22"}
    assert project.device.runs == tmp_path / "runs"


def test_the_file_is_found_above_and_paths_stay_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, FULL)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    project = ProjectConfig.load()
    assert project.root == tmp_path
    assert project.quantize.bundle == tmp_path / "out" / "bundle"


def test_arguments_win_and_their_paths_start_from_the_current_folder(tmp_path: Path) -> None:
    write(tmp_path, FULL)
    (tmp_path / "sub").mkdir()
    project = ProjectConfig.from_args(
        cwd=tmp_path / "sub", calib="more", bundle="here", max_drop=0.5, threads=[2]
    )
    assert project.data.calib == "sub/more"
    assert project.data.eval == "photos/choose"
    assert project.quantize.bundle == tmp_path / "sub" / "here"
    assert project.budget.max_drop == 0.5
    assert project.probe.threads == (2,)


def test_another_model_does_not_inherit_the_files_weights_and_inputs(tmp_path: Path) -> None:
    write(tmp_path, FULL)
    project = ProjectConfig.from_args(cwd=tmp_path, model="torchvision:resnet18")
    assert project.model.weights is None
    assert project.model.inputs == ()
    assert project.model.name == "resnet18"


def test_arguments_alone_make_a_project(tmp_path: Path) -> None:
    project = ProjectConfig.from_args(
        cwd=tmp_path,
        model="nets/small.py:build",
        input=["1x3x32x32"],
        preprocess="resize=32, crop=[32, 32], color='L'",
    )
    assert (project.root, project.model.name) == (tmp_path, "small")
    assert project.quantize.runtimes == ("executorch", "tflite", "onnx", "torchscript")
    assert project.quantize.bundle == tmp_path / "bundle"
    assert project.preprocess == Preprocess(
        resize=32, crop=(32, 32), color="L", mean=(0.0,), std=(1.0,)
    )


def test_a_preprocess_object_passes_through(tmp_path: Path) -> None:
    given_object = Preprocess(resize=10)
    project = ProjectConfig.from_args(cwd=tmp_path, model="m.py:f", preprocess=given_object)
    assert project.preprocess is given_object


def test_no_model_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no edgekit.toml") as caught:
        ProjectConfig.from_args(cwd=tmp_path)
    assert "edgekit init" in caught.value.remedy
    assert DeviceConfig.from_args(cwd=tmp_path).bundle == tmp_path / "bundle"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[budget]\nmax_dropp = 1", "edgekit.toml:5: budget.max_dropp: unknown key. Did you mean"),
        ("[budgt]\nx = 1", "edgekit.toml:4: budgt: unknown key. Did you mean 'budget'?"),
        ("[budget]\nmax_drop = 1", ":5: budget.max_drop: must be a number, at least 0 and below 1"),
        ("[budget]\nmax_drop = true", "not True"),
        ("[budget]\nmax_drop = nan", "not nan"),
        ("[budget]\nmax_size_mb = 0", "must be a size in MB above 0"),
        ("[probe]\nthreads = [0]", ":5: probe.threads: must be whole numbers from 1 to 256"),
        ("[probe]\nthreads = [1, 1]", "must not name anything twice"),
        ("[probe]\nthreads = 2", "must be a list of thread counts"),
        ("[probe]\nprocesses = 2.5", "must be a whole number from 1 to 1000"),
        ("[probe]\nobjective = 'p99'", "must be one of p50, p90"),
        ("[quantize]\nruntimes = ['tflit']", "Did you mean 'tflite'?"),
        ("[quantize]\nrecipes = []", "must be a list of recipes"),
        ("[quantize]\ntimeout_s = 0", "at least 1 and at most"),
        ("[data]\nmetric = 'map'", "must be one of auto, top1"),
        ("[data]\ncalib = 3", "must be a text"),
        ("[preprocess]\nmean = [1, 2]", "must be 3 numbers"),
        ("[preprocess]\nstd = [1, 0, 1]", "must not contain 0"),
        ("[preprocess]\ncrop = [1, -2]", "[height, width]"),
        ("[preprocess]\nscale = 0", "must not be 0"),
        ("[preprocess]\nresize = 0", "must be a whole number from 1"),
        ("[targets.pi]\naddress = 'x'", "targets.pi.transport: is missing"),
        ("[targets.pi]\ntransport = 'shh'", "Did you mean 'ssh'?"),
        ("[targets.'a b']\ntransport = 'local'", "a target's name must be"),
        ("[targets]\npi = 'ssh'", "must be a table, [targets.pi]"),
        ("[targets.pi]\ntransport = 'ssh'\noptions = {password = 'x'}", "looks like a secret"),
        ("[budget]\nmax_drop = ", "edgekit.toml:5: not valid TOML"),
    ],
)
def test_complaints_name_line_key_and_reason(tmp_path: Path, line: str, expected: str) -> None:
    text = f"schema = 1\n[model]\nsource = 'm.py:f'\n{line}\n"
    assert expected in complaint(tmp_path, text)


def test_all_problems_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    text = "[model]\nsource = 'm.py:f'\nnaem = 'x'\n[budget]\nmax_drop = 2\n"
    lines = complaint(tmp_path, text).splitlines()
    assert len(lines) == 2
    assert "edgekit.toml:3: model.naem" in lines[0] + lines[1]


def test_model_table_complaints(tmp_path: Path) -> None:
    assert "model.source: is missing" in complaint(tmp_path, "[model]\nname = 'x'\n")
    assert "must be letters" in complaint(tmp_path, "[model]\nname = 'a/b'\nsource = 'm.py:f'\n")
    assert "is not a shape" in complaint(tmp_path, "[model]\ninput = ['3,4']\nsource = 'm.py:f'\n")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        ProjectConfig.load(write(tmp_path, "\nschema = 2\n"))
    assert "edgekit.toml:2: schema" in caught.value.message
    assert caught.value.remedy == "Update edgekit."


def test_a_wrong_option_is_named_as_typed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--max-drop: must be a number") as caught:
        ProjectConfig.from_args(cwd=tmp_path, model="m.py:f", max_drop=3)
    assert not isinstance(caught.value, ConfigError)
    with pytest.raises(UsageError, match=r"max_drop=: must be"):
        ProjectConfig.from_args(cwd=tmp_path, model="m.py:f", max_drop=3, python_names=True)
    with pytest.raises(UsageError, match=r"--preprocess crop: must be"):
        ProjectConfig.from_args(cwd=tmp_path, model="m.py:f", preprocess="crop=[1]")
    with pytest.raises(UsageError, match=r"neither a preset nor"):
        ProjectConfig.from_args(cwd=tmp_path, model="m.py:f", preprocess="crop 1")


@given(st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=6))
def test_shapes_round_trip(extents: list[int]) -> None:
    assert parse_shape("x".join(map(str, extents))) == tuple(extents)


@pytest.mark.parametrize("text", ["", "x", "1x", "0x3", "1x-2", "1.5x2", "9999999999", 3, None])
def test_other_shapes_are_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"shape|extent"):
        parse_shape(text)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("nets/small.py:build", "small"),
        ("torchvision:mobilenet_v3_large", "mobilenet_v3_large"),
        ("timm:vit/x", "vit_x"),
        ("package.nets.small:make", "small"),
        ("dir/net.pt2", "net"),
        ("torchvision:", "model"),
    ],
)
def test_names_of_models(source: str, name: str) -> None:
    assert default_model_name(source) == name


def test_anchored_paths(tmp_path: Path) -> None:
    root, cwd = tmp_path / "p", tmp_path / "p" / "sub"
    assert anchored("../m.py:f", cwd, root) == "m.py:f"
    assert anchored("../../m.py:f", cwd, root) == f"{tmp_path}/m.py:f"
    assert anchored("torchvision:resnet18", cwd, root) == "torchvision:resnet18"
    assert anchored("photos", cwd, root) == "sub/photos"


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.integers(), max_size=6))
def test_line_numbers_are_those_of_the_keys(values: dict[str, int]) -> None:
    text = "# first\n[a.b]\n" + "".join(f"{key} = {value}\n" for key, value in values.items())
    assert tomllib.loads(text)["a"]["b"] == values
    lines = key_lines(text)
    assert [lines["a", "b", key] for key in values] == list(range(3, 3 + len(values)))
