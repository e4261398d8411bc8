"""The whole program against a device behind a real sshd: nothing sent twice, damage found and
mended, measurements that outlive their host."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sshd
from benchmarks.faults.bundles import ARTIFACT, Release
from benchmarks.sshd import Server
from tests.targets.ssh_tools import Proxy, logins

ROOT = Path(__file__).parents[2]
_SETTINGS = """
schema = 1
[budget]
max_drop = 0.2
[quantize]
bundle = "{bundle}"
[probe]
threads = [1]
processes = {processes}
budget_s = 0.05
[targets.board]
transport = "ssh"
address = "{user}@{host}:{port}"
workdir = "{root}"
options = {{ python = "{python}", identity = "{identity}", reconnect_s = "0.5" }}
"""


@dataclass
class Project:
    """A folder with an edgekit.toml whose device is this machine behind an sshd."""

    folder: Path
    server: Server
    proxy: Proxy
    bundle: Path

    @property
    def root(self) -> Path:
        return self.folder / "board"

    @property
    def hosts(self) -> Path:
        """What the programs that are started here take for /etc/hosts, once it is there."""
        return self.folder / "hosts"

    def with_hosts(self) -> list[str]:
        """The beginning of a command line."""
        mount = f'mount --bind {shlex.quote(str(self.hosts))} /etc/hosts && exec "$@"'
        return ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]

    def write(self, *, port: int, processes: int = 2, host: str = "127.0.0.1") -> None:
        settings = _SETTINGS.format(
            bundle=self.bundle,
            processes=processes,
            user=self.server.user,
            host=host,
            port=port,
            root=self.root,
            python=sys.executable,
            identity=self.server.identity,
        )
        (self.folder / "edgekit.toml").write_text(settings)

    def start(self, *words: str) -> subprocess.Popen[str]:
        names = self.with_hosts() if self.hosts.exists() else []
        return subprocess.Popen(
            [*names, sys.executable, "-m", "edgekit", *words, "--json"],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, code: int = 0) -> dict[str, Any]:
        process = self.start(*words)
        out, err = process.communicate(timeout=240)
        assert process.returncode == code, err
        document: dict[str, Any] = json.loads(out)
        return document

    def measuring(self) -> None:
        """Returns when a first process of a measurement has ended on the device."""
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size for path in self.root.glob("spool/*/events.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture
def project(
    releases: list[Release], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    server = sshd.start(tmp_path / "sshd")
    proxy = Proxy(server.port)
    (tmp_path / ".ssh").mkdir(mode=0o700)
    both = f"[127.0.0.1]:{proxy.port} {server.host_key}\n" + server.known_hosts_line
    (tmp_path / ".ssh" / "known_hosts").write_text(both)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    made = Project(tmp_path, server, proxy, releases[0].path)
    made.write(port=proxy.port)
    yield made
    proxy.close()
    server.stop()


def test_a_second_deploy_sends_nothing_and_a_flipped_bit_is_found_and_mended(
    project: Project,
) -> None:
    first = project.run("deploy")
    assert first["activation"]["artifact_id"] == ARTIFACT and first["pushed"]["sent_bytes"] > 0
    before = logins(project.server), project.proxy.passed
    second = project.run("deploy")
    assert second["pushed"]["sent_bytes"] == 0 and second["activation"] == first["activation"]
    assert logins(project.server) == before[0] + 1, "one connection"
    assert project.proxy.passed - before[1] < 600_000, "requests and programs, but no artifact"
    assert project.run("status", "--verify")["problems"] == []

    blobs = sorted(project.root.glob("store/sha256/*/*"), key=lambda path: path.stat().st_size)
    for place in (blobs[-1], project.root / "current" / "cut" / "active.json"):
        place.chmod(0o644)
        data = bytearray(place.read_bytes())
        data[len(data) // 2] ^= 4
        place.write_bytes(data)
        status = project.run("status", "--verify", code=4)
        assert any("damaged" in p or "cannot be read" in p for p in status["problems"])
        assert "Deploy the same bundle again" in status["remedy"]
        mended = project.run("deploy")
        assert mended["activation"]["artifact_id"] == ARTIFACT
        assert project.run("status", "--verify")["problems"] == []

    place = project.root / "store" / "sha256" / "ab" / ("ab" * 32)
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"damaged, and nothing active needs it")
    status = project.run("status", "--verify", code=4)
    assert status["problems"] == [] and place.name in status["unused_problems"][0]
    assert "`edgekit gc` removes it" in status["remedy"]
    assert project.run("deploy")["activation"] == mended["activation"], "no reason to do it again"
    project.run("gc")
    assert project.run("status", "--verify")["unused_problems"] == []


def test_what_was_measured_is_fetched_after_the_host_was_killed(project: Project) -> None:
    project.write(port=project.server.port, processes=5)
    nothing = project.run("probe", "--fetch", code=2)
    assert "nothing to fetch" in nothing["error"]["message"]
    killed = project.start("probe")
    project.measuring()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (note,) = project.root.glob("spool/*/worker.json")
    worker = json.loads(note.read_text())["pid"]
    os.kill(worker, signal.SIGSTOP)  # so that it surely measures still
    early = project.run("probe", "--fetch", code=4)
    assert "still measures" in early["error"]["message"] and early["error"]["remedy"]
    os.kill(worker, signal.SIGCONT)
    fetched = _fetched(project)
    assert len(fetched["selection"]["candidates"]) == 1 and fetched["selection"]["chosen"] == 0
    (probe,) = (Path(fetched["run"]) / "probes").glob("*.json")
    result = json.loads(probe.read_text())
    assert result["status"] == "ok" and len(result["latency_ns"]) == 5
    assert not list(project.root.glob("spool/*")), "fetched results are gone from the device"
    project.run("probe", "--fetch", code=2)


def test_what_was_measured_is_fetched_after_the_link_was_lost(project: Project) -> None:
    project.write(port=project.proxy.port, processes=4)
    probe = project.start("probe")
    project.measuring()
    project.proxy.close()  # and it stays away
    out, _ = probe.communicate(timeout=120)
    assert probe.returncode == 4
    error = json.loads(out)["error"]
    assert "goes on" in error["message"] and "--fetch" in error["remedy"]
    project.write(port=project.server.port, processes=1)  # other settings do not matter
    fetched = _fetched(project)
    (result,) = (Path(fetched["run"]) / "probes").glob("*.json")
    assert len(json.loads(result.read_text())["latency_ns"]) == 4


def test_a_measurement_outlives_the_name_of_its_device(project: Project) -> None:
    """Such as raspberrypi.local, which the device itself answers for: it resolves to nothing while
    the device is away."""
    there = "127.0.0.1 pole.invalid\n"
    project.hosts.write_text(there)
    if subprocess.run([*project.with_hosts(), "true"], check=False).returncode != 0:
        pytest.skip("a file in the place of /etc/hosts needs namespaces of users")
    port = project.proxy.port
    with open(project.folder / ".ssh" / "known_hosts", "a") as known:
        known.write(f"[pole.invalid]:{port} {project.server.host_key}\n")
    project.write(port=port, processes=5, host="pole.invalid")
    probe = project.start("probe")
    project.measuring()
    (note,) = project.root.glob("spool/*/worker.json")
    worker = json.loads(note.read_text())["pid"]
    os.kill(worker, signal.SIGSTOP)
    project.hosts.write_text("")
    before = project.proxy.opened
    project.proxy.cut()
    time.sleep(3.0)  # more than once as long as `reconnect_s`
    assert probe.poll() is None and project.proxy.opened == before
    project.hosts.write_text(there)
    os.kill(worker, signal.SIGCONT)
    out, err = probe.communicate(timeout=120)
    assert probe.returncode == 0, err
    (result,) = (Path(json.loads(out)["run"]) / "probes").glob("*.json")
    assert len(json.loads(result.read_text())["latency_ns"]) == 5


def _fetched(project: Project) -> dict[str, Any]:
    """Asks again until the measurement has ended, as a user would."""
    for _ in range(60):
        process = project.start("probe", "--fetch")
        out, err = process.communicate(timeout=120)
        if process.returncode == 0:
            document: dict[str, Any] = json.loads(out)
            return document
        assert process.returncode == 4, err
        time.sleep(0.5)
    raise AssertionError("the measurement never ended")
