"""Facts: every recording in recorded/ is parsed and compared; and this machine tells its own."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from edgekit import codec
from edgekit.targets.abi import device_abi
from edgekit.targets.agent import agent
from edgekit.targets.facts import parse_facts, parse_throttled
from edgekit.targets.profile import Profile, load_profile, misfits, names, thread_counts, unfit
from edgekit.types import DeviceFacts

RECORDINGS = sorted((Path(__file__).parent / "recorded").glob("*.json"))


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recording(path: Path) -> None:
    recording = json.loads(path.read_text(encoding="utf-8"))
    facts = parse_facts(recording["raw"])
    found = json.loads(json.dumps(dataclasses.asdict(facts)))
    assert {key: found[key] for key in recording["expected"]} == recording["expected"]
    assert set(recording.get("has_features", [])) <= set(facts.cpu_features)
    assert not set(recording.get("lacks_features", [])) & set(facts.cpu_features)
    # Whatever a device says, it can be judged and recorded.
    misfits(load_profile("rpi4"), facts)
    unfit(facts)
    assert len(device_abi(facts).platforms) < 1000
    codec.to_json(facts).encode()


@pytest.mark.parametrize(
    ("text", "flags"),
    [("0", 0), ("50005\n", 0x50005), ("throttled=0x0", 0), ("throttled=0x80000\n", 0x80000),
     ("", None), ("error=1 error_msg=\"Command not registered\"", None)],
)  # fmt: skip
def test_throttled(text: str, flags: int | None) -> None:
    assert parse_throttled(text) == flags


def test_this_machine_tells_its_own(tmp_path: Path) -> None:
    facts = parse_facts(json.loads(json.dumps(agent.facts(agent.Root(str(tmp_path))))))
    assert facts.arch == os.uname().machine and facts.cpu_count >= 1
    assert facts.mem_total_bytes > 2**26 and facts.disk_free_bytes > 0
    assert facts.kernel and facts.python


def test_the_temperature_gate_waits_and_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter(["81000\n", "75500\n", "69900\n"])
    monkeypatch.setattr(agent, "_read_all", lambda patterns: {"temp": next(readings)})
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    agent._cool_down({"max_temp_c": 70.0, "wait_s": 60.0})
    assert len(slept) == 2 and next(readings, None) is None
    monkeypatch.setattr(agent, "_read_all", lambda patterns: {"temp": "81000"})
    agent._cool_down({"max_temp_c": 70.0, "wait_s": 0.01})  # too hot for good: measured as it is
    assert agent._cool_down({}) < 0.1
    monkeypatch.setattr(agent, "_read_all", lambda patterns: {})
    assert agent._cool_down({"max_temp_c": 70.0, "wait_s": 60.0}) < 0.1, "no sensor, no gate"


def _facts(name: str) -> DeviceFacts:
    path = Path(__file__).parent / "recorded" / f"{name}.json"
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["raw"]
    return parse_facts(raw)


def test_profiles_are_whole_and_fit_their_devices() -> None:
    boards = {"rpi3", "rpi4", "rpi5", "jetson-orin-nano"}
    assert {*boards, "linux-x86_64", "linux-aarch64", "local"} <= set(names())
    for name in names():
        profile = load_profile(name)
        assert profile.description and profile.threads and min(profile.threads) >= 1
        assert (profile.max_temp_c > 0) == (name in boards)
    for name in boards:
        facts = _facts(name.replace("-", "_"))
        assert misfits(load_profile(name), facts) == []
        assert misfits(load_profile("linux-aarch64"), facts) == []
    pi4 = _facts("rpi4")
    assert misfits(load_profile("rpi4"), pi4) == []
    assert misfits(load_profile("linux-aarch64"), pi4) == []
    assert misfits(load_profile("local"), _facts("nothing")) == []
    assert misfits(load_profile("linux-x86_64"), _facts("x86_64_vm")) == []


def test_thread_counts_are_those_of_the_profile_as_far_as_there_are_cpus() -> None:
    pi4 = _facts("rpi4")
    assert pi4.cpu_count == 4
    assert thread_counts(load_profile("rpi4"), pi4) == (1, 2, 4)
    assert thread_counts(load_profile("jetson-orin-nano"), pi4) == (1, 2, 4)
    assert thread_counts(None, pi4) == (1, 2)
    assert thread_counts(load_profile("rpi4"), dataclasses.replace(pi4, cpu_count=1)) == (1,)
    assert thread_counts(Profile("x", "", threads=(2,)), _facts("nothing")) == (1,)


def test_misfits_are_named() -> None:
    pi4 = _facts("rpi4")
    (problem,) = misfits(load_profile("rpi5"), pi4)
    assert problem == "its CPU lacks aes, asimddp, atomics"
    (problem,) = misfits(load_profile("linux-x86_64"), _facts("nothing"))
    assert "architecture" in problem
    (problem, features) = misfits(load_profile("rpi4"), _facts("rpi4_32bit"))
    assert problem == "its architecture is armv7l, not aarch64" and "asimd" in features
    bullseye = dataclasses.replace(pi4, libc="glibc 2.31", python="3.9.2")
    assert misfits(load_profile("rpi4"), bullseye) == [
        "its glibc is 2.31, older than 2.34",
        "its Python is 3.9.2, older than 3.11",
    ]
