"""A whole device behind SSH: what is deployed there, over how many connections, how many bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import sshd
from benchmarks.sshd import Server
from edgekit.bundle import Bundle
from edgekit.targets.device import connect
from edgekit.types import ProbeRequest, Target
from tests.targets.ssh_tools import Proxy, logins, target_of


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = sshd.start(tmp_path / "sshd")
    (tmp_path / ".ssh").mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    yield running
    running.stop()


def board(server: Server, proxy: Proxy, root: Path) -> Target:
    target = target_of(server, port=proxy.port)
    return Target("board", "ssh", target.address, str(root), "", target.options)


def test_deploy_measure_and_deploy_again_over_a_bad_link(
    server: Server, bundle: Bundle, tmp_path: Path
) -> None:
    proxy = Proxy(server.port)
    line = server.known_hosts_line
    (tmp_path / ".ssh" / "known_hosts").write_text(line.replace(str(server.port), str(proxy.port)))
    target = board(server, proxy, tmp_path / "root")
    (artifact,) = [a for a in bundle.manifest.artifacts if a.runtime == "executorch"]
    with connect(target) as device:
        # Cut once while the runtime is on its way, and once while it is measured.
        proxy.cut_after(1_000_000)
        report = device.push(bundle, [artifact.id])
        assert report.sent_blobs > 0 and proxy.opened == 2
        request = ProbeRequest(artifact.id, artifact.sha256, 1, 2, 0.05)
        (result,) = device.probe(bundle, [request], on_push=lambda report: proxy.cut())
        assert result.status == "ok" and len(result.latency_ns) == 2
        assert proxy.opened == 3
        assert device.activate(bundle, artifact.id, 1).artifact_id == artifact.id
    before = logins(server), proxy.passed
    with connect(target) as device:
        assert device.push(bundle, [artifact.id]).sent_bytes == 0
        assert device.activate(bundle, artifact.id, 1).previous is None
        assert device.status(verify=True).problems == ()
    assert logins(server) == before[0] + 1
    assert proxy.passed - before[1] < 500_000, "requests and programs, but no artifact"
    proxy.close()
