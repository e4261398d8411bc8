"""The transport to an emulated device: SSH, to where it is now, with its own key and host key."""

from __future__ import annotations

from dataclasses import replace

from edgekit.targets.ssh import SshTransport
from edgekit.targets.virtual.devices import running
from edgekit.types import Target


class VirtualTransport(SshTransport):
    """See :class:`edgekit.targets.ssh.SshTransport`, whose time-outs may be set here too.

    Args:
        target: whose address is the name of an emulated device.

    Raises:
        DeviceError: it does not run; says how to start it.
    """

    def __init__(self, target: Target) -> None:
        reached = running(target.address).target()
        super().__init__(
            replace(reached, name=target.name, options={**target.options, **reached.options})
        )
