"""``edgekit doctor`` on this machine, as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgekit import registry
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
