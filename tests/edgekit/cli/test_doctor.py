"""``edgekit doctor`` on this machine, as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgekit import registry
from edgekit.errors import LinkLost
from edgekit.targets import deploy
from tests.edgekit.cli.conftest import Done

Call = Callable[..., Done]


def test_doctor_tries_every_runtime_and_says_what_it_found(call: Call, tmp_path: Path) -> None:
    settings = f'[targets.local]\ntransport = "local"\nworkdir = "{tmp_path}/device"\n'
    (tmp_path / "edgekit.toml").write_text(settings)
    done = call("doctor", "--json")
    assert done.code == 0, done.err
    checks = done.document["checks"]
    assert [check["name"] for check in checks["exporters"]] == list(registry.RUNTIMES)
    runtimes = {check["name"]: check for check in checks["runtimes on local"]}
    assert set(runtimes) == set(registry.RUNTIMES)
    for check in (*checks["exporters"], *runtimes.values()):
        assert check["versions"] if check["ok"] else check["detail"] and check["remedy"]


def test_no_working_runtime_is_4(call: Call, tmp_path: Path, monkeypatch: object) -> None:
    settings = f'[targets.local]\ntransport = "local"\nworkdir = "{tmp_path}/device"\n'
    (tmp_path / "edgekit.toml").write_text(settings + 'options = {python = "/bin/false"}\n')
    done = call("doctor")
    assert done.code == 4
    assert "edgekit: " in done.err


def test_a_runtime_that_could_not_be_tried_is_not_nothing_missing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = f'[targets.local]\ntransport = "local"\nworkdir = "{tmp_path}/device"\n'
    (tmp_path / "edgekit.toml").write_text(settings)
    push, pushed = deploy.push, []

    def lost_once(*arguments: object, **named: object) -> object:
        pushed.append(arguments)
        if len(pushed) == 1:
            raise LinkLost("board: the connection was lost: it ended in the middle.")
        return push(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(deploy, "push", lost_once)
    done = call("doctor")
    assert done.code == 0 and len(pushed) > 1
    assert "it ended in the middle" in done.out
    assert "Run doctor again" in done.out and "Nothing is missing" not in done.out
