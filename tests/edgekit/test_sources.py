"""Every model source on real modules, and what its errors say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit import registry, sources
from edgekit.errors import SourceError
from edgekit.sources import SourceSpec, kind_of
from edgekit.sources.base import hash_weights

MODEL = """
import helper
from torch import nn
import torch

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(helper.WIDTH, 2)
        self.drop = nn.Dropout()
    def forward(self, features):
        return self.drop(self.layer(features))

def build():
    torch.manual_seed(0)
    return Net()

def example_inputs():
    return (torch.zeros(1, helper.WIDTH),)

def broken():
    return 1 / 0

def wrong():
    return "no model"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "model.py").write_text(MODEL)
    (tmp_path / "nets" / "helper.py").write_text("WIDTH = 4\n")
    return tmp_path


def spec(root: Path, source: str, **changes: object) -> SourceSpec:
    return SourceSpec(source=source, root=root, name="net", **changes)  # type: ignore[arg-type]


def failure(loading: SourceSpec) -> SourceError:
    with pytest.raises(SourceError) as caught:
        sources.load(loading)
    return caught.value


def test_a_factory_in_a_file_gives_an_eval_module_its_inputs_and_its_files(project: Path) -> None:
    loaded = sources.load(spec(project, "nets/model.py:build"))
    assert not loaded.module.training
    assert loaded.input_names == ("features",)
    assert [tuple(tensor.shape) for tensor in loaded.example_inputs] == [(1, 4)]
    assert [path.name for path in loaded.dependencies] == ["helper.py", "model.py"]
    assert loaded.weights_sha256 == hash_weights(loaded.module.state_dict())


def test_input_shapes_win_over_example_inputs_and_keep_their_batch(project: Path) -> None:
    loaded = sources.load(spec(project, "nets/model.py:build", inputs=((3, 4),)))
    assert tuple(loaded.example_inputs[0].shape) == (3, 4)


def test_a_module_path_is_imported_from_the_root(project: Path) -> None:
    (project / "edgekit_test_pkg").mkdir()
    (project / "edgekit_test_pkg" / "__init__.py").write_text("")
    (project / "edgekit_test_pkg" / "net.py").write_text(
        "from torch import nn\ndef make():\n    return nn.ReLU()\n"
    )
    loaded = sources.load(spec(project, "edgekit_test_pkg.net:make", inputs=((1, 2),)))
    assert isinstance(loaded.module, nn.ReLU)
    assert project / "edgekit_test_pkg" / "net.py" in loaded.dependencies


def test_files_that_the_factory_opens_are_dependencies(project: Path) -> None:
    torch.save(nn.Linear(4, 2).state_dict(), project / "own.pth")
    (project / "m.py").write_text(
        "import pathlib, torch\nfrom torch import nn\n"
        "def build():\n"
        "    net = nn.Linear(4, 2)\n"
        "    net.load_state_dict(torch.load(pathlib.Path(__file__).parent / 'own.pth'))\n"
        "    return net\n"
    )
    loaded = sources.load(spec(project, "m.py:build", inputs=((1, 4),)))
    assert {path.name for path in loaded.dependencies} >= {"own.pth", "m.py"}


def test_two_files_of_one_name_are_not_taken_for_each_other(project: Path) -> None:
    (project / "other").mkdir()
    (project / "other" / "model.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Tanh()\n"
    )
    first = sources.load(spec(project, "nets/model.py:build"))
    second = sources.load(spec(project, "other/model.py:build", inputs=((1, 4),)))
    assert type(first.module).__name__ == "Net"
    assert isinstance(second.module, nn.Tanh)


@pytest.mark.parametrize("wrap", ["", "state_dict", "model"])
def test_weights_are_loaded_and_change_the_hash(project: Path, wrap: str) -> None:
    state = {"layer.weight": torch.full((2, 4), 3.0), "layer.bias": torch.zeros(2)}
    state = {f"module.{key}": value for key, value in state.items()}
    path = project / "weights.pth"
    torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    plain = sources.load(spec(project, "nets/model.py:build"))
    loaded = sources.load(spec(project, "nets/model.py:build", weights=path))
    assert float(loaded.module.state_dict()["layer.weight"].sum()) == 24.0
    assert loaded.weights_sha256 != plain.weights_sha256
    assert path in loaded.dependencies


def test_weights_that_do_not_fit_name_the_keys(project: Path) -> None:
    path = project / "weights.pth"
    torch.save({"layer.weight": torch.zeros(2, 4), "head.bias": torch.zeros(2)}, path)
    message = failure(spec(project, "nets/model.py:build", weights=path)).message
    assert "missing layer.bias" in message
    assert "unexpected head.bias" in message
    torch.save({"layer.weight": torch.zeros(2, 9), "layer.bias": torch.zeros(2)}, path)
    assert "[2, 9]" in failure(spec(project, "nets/model.py:build", weights=path)).message


def test_weights_with_code_in_them_need_consent(project: Path) -> None:
    path = project / "whole.pth"
    model = nn.Sequential()
    model.layer = nn.Linear(4, 2)
    torch.save(model, path)
    refused = failure(spec(project, "nets/model.py:build", weights=path))
    assert "--unsafe-weights" in refused.remedy
    sources.load(spec(project, "nets/model.py:build", weights=path, unsafe_weights=True))


def test_safetensors_are_weights_too(project: Path) -> None:
    from safetensors.torch import save_file

    path = project / "weights.safetensors"
    save_file({"layer.weight": torch.full((2, 4), 3.0), "layer.bias": torch.zeros(2)}, path)
    loaded = sources.load(spec(project, "nets/model.py:build", weights=path))
    assert float(loaded.module.state_dict()["layer.weight"].sum()) == 24.0


def test_the_hash_does_not_depend_on_the_order_but_on_names_shapes_and_types() -> None:
    one, two = torch.ones(2, 3), torch.zeros(())
    assert hash_weights({"a": one, "b": two}) == hash_weights({"b": two, "a": one})
    assert hash_weights({"a": one}) != hash_weights({"a": one.reshape(3, 2)})
    assert hash_weights({"a": one}) != hash_weights({"c": one})
    assert hash_weights({"a": one}) != hash_weights({"a": one.to(torch.bfloat16)})


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("nets/model.py:broken", "nets/model.py:22): ZeroDivisionError: division by zero"),
        ("nets/model.py:wrong", "returned a str"),
        ("nets/model.py:biuld", "has no 'biuld'"),
        ("nets/absent.py:build", "There is no file"),
        ("absent_pkg:build", "No module named 'absent_pkg'"),
        ("absent.pt2", "There is no file"),
    ],
)
def test_errors_say_what_and_where(project: Path, source: str, expected: str) -> None:
    assert expected in failure(spec(project, source)).message


def test_a_misspelt_factory_is_suggested(project: Path) -> None:
    assert "'build'" in failure(spec(project, "nets/model.py:biuld")).remedy


def test_a_syntax_error_names_the_users_line(project: Path) -> None:
    (project / "bad.py").write_text("x = 1\ndef build(:\n    pass\n")
    assert "(bad.py:2): SyntaxError" in failure(spec(project, "bad.py:build")).message


def test_exit_in_user_code_is_an_error_and_not_the_end(project: Path) -> None:
    (project / "quits.py").write_text("raise SystemExit(3)\n")
    assert "(quits.py:1): SystemExit" in failure(spec(project, "quits.py:build")).message


def test_unknown_inputs_ask_for_a_shape(project: Path) -> None:
    (project / "m.py").write_text("from torch import nn\ndef build():\n    return nn.ReLU()\n")
    assert "--input" in failure(spec(project, "m.py:build")).remedy


def test_inputs_that_the_model_refuses_are_an_error_of_their_own(project: Path) -> None:
    error = failure(spec(project, "nets/model.py:build", inputs=((1, 9),)))
    assert "on inputs of shape 1x9 failed (nets/model.py:12)" in error.message
    error = failure(spec(project, "nets/model.py:build", inputs=((1, 4), (1, 4))))
    assert "forward takes 1" in error.message


def test_example_names_another_file(project: Path) -> None:
    (project / "inputs.py").write_text("import torch\ndef two():\n    return torch.ones(2, 4)\n")
    loaded = sources.load(spec(project, "nets/model.py:build", example="inputs.py:two"))
    assert tuple(loaded.example_inputs[0].shape) == (2, 4)
    (project / "inputs.py").write_text("def two():\n    return {'x': 1}\n")
    error = failure(spec(project, "nets/model.py:build", example="inputs.py:two"))
    assert "it gave dict" in error.message


def test_torchvision_by_name() -> None:
    loaded = sources.load(spec(Path(), "torchvision:mobilenet_v3_small"))
    assert tuple(loaded.example_inputs[0].shape) == (1, 3, 224, 224)
    assert "random weights" in loaded.notes[0]
    assert loaded.dependencies == ()
    error = failure(spec(Path(), "torchvision:mobilenet_v3_smal"))
    assert "mobilenet_v3_small" in error.remedy
    error = failure(spec(Path(), "torchvision:mobilenet_v3_small@IMAGENET9"))
    assert "IMAGENET1K_V1" in error.remedy


def test_timm_by_name() -> None:
    pytest.importorskip("timm")
    loaded = sources.load(spec(Path(), "timm:mobilenetv3_small_050"))
    assert tuple(loaded.example_inputs[0].shape) == (1, 3, 224, 224)
    assert "efficientnet_lite0" in failure(spec(Path(), "timm:efficientnet_lite00")).remedy


def test_a_saved_program_keeps_its_inputs(tmp_path: Path) -> None:
    program = torch.export.export(nn.Linear(4, 2).eval(), (torch.zeros(1, 4),))
    torch.export.save(program, tmp_path / "net.pt2")
    loaded = sources.load(spec(tmp_path, "net.pt2"))
    assert tuple(loaded.example_inputs[0].shape) == (1, 4)
    assert loaded.dependencies == (tmp_path / "net.pt2",)
    assert loaded.weights_sha256 == hash_weights(program.state_dict)
    (tmp_path / "net.pt2").write_bytes(b"PK nonsense")
    assert "cannot be loaded" in failure(spec(tmp_path, "net.pt2")).message


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("model.py:build", "python"),
        ("a/b c/model.py:build", "python"),
        ("package.module:factory", "python"),
        ("torchvision:resnet18", "torchvision"),
        ("timm:x", "timm"),
        ("dir/x.pt2", "pt2"),
    ],
)
def test_forms_of_sources(source: str, kind: str) -> None:
    assert kind_of(source) == kind


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("model.py", "Write model.py:FUNCTION."),
        ("torchvison:resnet18", "torchvision"),
        ("hf:microsoft/resnet-50", ""),
        ("resnet18", "A model is"),
    ],
)
def test_other_forms_are_refused_with_advice(source: str, hint: str) -> None:
    with pytest.raises(SourceError) as caught:
        kind_of(source)
    assert hint in caught.value.remedy


def test_every_registered_source_has_its_file() -> None:
    folder = Path(sources.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "base", "user_code"}
    assert files == set(registry.SOURCES)
