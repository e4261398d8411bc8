"""Editing the targets of an edgekit.toml: the rest stays as it is, to the byte."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from edgekit.config import DeviceConfig
from edgekit.config_edit import add_target, remove_target
from edgekit.errors import ConfigError, UsageError
from edgekit.types import Target

POLE = Target(
    "pole", "ssh", "pi@10.0.0.7", "/srv/edge kit", "rpi4", {"jump": 'a "b"\\', "python": "é"}
)
TEXT = """\
# A comment at the top.
[budget] # and one here
max_drop = 0.02

# The desk.
[targets.desk]
transport = "local" # this machine
# within the desk

# About the probe.
[probe]
seed = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "edgekit.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_what_is_added_is_read_back_and_the_rest_stays(file: Path) -> None:
    add_target(file, POLE)
    assert file.read_text().startswith(TEXT + "\n[targets.pole]\n")
    assert DeviceConfig.from_args(config=file).targets["pole"] == POLE
    remove_target(file, "pole")
    assert file.read_text() == TEXT


def test_what_is_removed_takes_only_its_own_lines(file: Path) -> None:
    add_target(file, POLE)
    remove_target(file, "desk")
    assert list(DeviceConfig.from_args(config=file).targets) == ["pole"]
    text = file.read_text()
    assert "# The desk.\n" in text and "# About the probe.\n[probe]\n" in text
    assert "this machine" not in text and "# and one here" in text


def test_a_file_that_is_not_there_is_made(tmp_path: Path) -> None:
    file = tmp_path / "edgekit.toml"
    add_target(file, POLE)
    assert file.read_text().startswith("[targets.pole]\n")
    remove_target(file, "pole")
    assert file.read_text() == ""


def test_a_file_without_a_last_newline(tmp_path: Path) -> None:
    file = tmp_path / "edgekit.toml"
    file.write_text("[budget]\nmax_drop = 0.5")
    add_target(file, POLE)
    assert tomllib.loads(file.read_text())["budget"] == {"max_drop": 0.5}


def test_sub_tables_and_odd_names_go_too(tmp_path: Path) -> None:
    file = tmp_path / "edgekit.toml"
    kept = '[probe]\nseed = 1 # [targets."a.b"]\n'
    file.write_text(
        '[targets."a.b"]\ntransport = "local"\n\n[targets."a.b".options]\nx = 1\n\n' + kept
    )
    remove_target(file, "a.b")
    assert file.read_text().strip() == kept.strip()


@pytest.mark.parametrize(
    "text",
    [
        'targets = { desk = { transport = "local" } }\n',
        '[targets]\ndesk = { transport = "local" }\n',
        '[targets]\ndesk.transport = "local"\n',
    ],
)
def test_other_forms_are_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "edgekit.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="cannot be edited"):
        remove_target(file, "desk")
    assert file.read_text() == text
    if text.startswith("targets"):
        with pytest.raises(ConfigError, match="cannot be edited"):
            add_target(file, POLE)
        assert file.read_text() == text


def test_headers_within_strings_and_arrays_are_none(tmp_path: Path) -> None:
    file = tmp_path / "edgekit.toml"
    text = 'a = """\n[targets.desk]\n"""\nb = [\n[1],\n]\n[targets.desk]\ntransport = "local"\n'
    file.write_text(text)
    with pytest.raises(ConfigError, match="cannot be edited"):
        remove_target(file, "desk")
    assert file.read_text() == text


def test_what_cannot_be(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has a target 'desk' already"):
        add_target(file, Target("desk", "local", ""))
    with pytest.raises(UsageError, match="has no target 'pole'"):
        remove_target(file, "pole")
    file.write_text("= 1\n")
    with pytest.raises(ConfigError, match="line 1"):
        add_target(file, POLE)
