"""The whole emulated machine: its kernel, its plug and its disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import DeviceError
from edgekit.targets.device import connect
from edgekit.targets.profile import load_profile, misfits
from edgekit.targets.ssh import SshTransport
from edgekit.targets.virtual import state, vm
from edgekit.targets.virtual.devices import boot, wait_for_ssh
from edgekit.targets.virtual.kernel import load_order
from edgekit.targets.virtual.state import VirtualDevice


def now(machine: VirtualDevice) -> VirtualDevice:
    """The machine as it is after others have used its plug."""
    found = state.read(machine.folder.parents[1], machine.name)
    assert found is not None
    return found


def sh(machine: VirtualDevice, script: str, user: str = "") -> str:
    transport = SshTransport(machine.target(user=user))
    try:
        done = transport.run(["sh", "-c", script], timeout_s=120)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()
    finally:
        transport.close()


def test_it_has_a_kernel_of_its_own(machine: VirtualDevice) -> None:
    with connect(now(machine).target()) as connected:
        facts = connected.facts()
    assert facts.emulated and facts.kernel.endswith("-arm64") and facts.cpu_count == 4
    assert facts.mem_total_bytes < 2 * 2**30 and facts.disk_free_bytes < vm.DISK_BYTES
    assert misfits(load_profile("rpi4"), facts) == []


def test_a_power_cut_spares_what_was_synced_and_its_disk_can_be_put_back(
    machine: VirtualDevice, tmp_path: Path
) -> None:
    device = now(machine)
    sh(device, "echo kept > kept && sync kept . && echo lost > lost")
    first = sh(device, "cat /proc/sys/kernel/random/boot_id")
    vm.power_off(device)
    assert not device.running
    vm.copy_disk(device.folder / "disk", tmp_path / "disk")
    assert (tmp_path / "disk").stat().st_blocks * 512 < vm.DISK_BYTES / 4, "the copy is sparse"
    device = boot(device)
    assert sh(device, "cat kept") == "kept"
    assert sh(device, "cat /proc/sys/kernel/random/boot_id") != first
    with pytest.raises(DeviceError, match="runs already"):
        boot(device)
    sh(device, "rm kept && sync")
    vm.power_off(device)
    vm.copy_disk(tmp_path / "disk", device.folder / "disk")
    assert sh(boot(device), "cat kept") == "kept"


def test_it_reboots_by_itself(machine: VirtualDevice) -> None:
    device = now(machine)
    first = sh(device, "cat /proc/sys/kernel/random/boot_id")
    transport = SshTransport(device.target(user="root"))
    with pytest.raises(DeviceError):  # the link goes with it
        transport.run(["sh", "-c", "sync; echo b > /proc/sysrq-trigger; sleep 60"], timeout_s=90)
    transport.close()
    assert device.running, "the machine's process goes on"
    wait_for_ssh(device)
    assert sh(device, "cat /proc/sys/kernel/random/boot_id") != first


def test_it_reaches_nobody(machine: VirtualDevice) -> None:
    answer = sh(
        now(machine),
        "python3 -c 'import socket; socket.create_connection((\"10.0.2.2\", 22), 2)' 2>&1 || true",
    )
    assert "Error" in answer or "timed out" in answer


def test_a_program_device_has_no_plug(bookworm_device: VirtualDevice) -> None:
    with pytest.raises(DeviceError, match="not a whole machine"):
        vm.power_off(bookworm_device)
    assert bookworm_device.running


def test_modules_are_loaded_after_what_they_need() -> None:
    modules = {
        "virtio_net": b"\0depends=net-failover\0",
        "net_failover": b"x\0depends=failover\0",
        "failover": b"\0license=GPL\0depends=\0",
        "alone": b"\0nothing\0",
    }
    assert load_order(("virtio_net", "built_in", "alone", "failover"), modules) == [
        "failover",
        "net_failover",
        "virtio_net",
        "alone",
    ]
