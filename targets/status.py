"""What is active on a device, and what is wrong with what is stored there."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.targets.answer import shortened
from edgekit.targets.channel import Channel
from edgekit.targets.deploy import read_activation
from edgekit.types import Activation

#: Everything that is stored may have to be read, from a slow card.
_LIMIT_S = 1800.0


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """What is active on a device.

    Attributes:
        activations: one per model.
        problems: what is wrong with what they and their previous ones need.
        unused_problems: what is wrong with what is stored there beside that: candidates, runtimes.
    """

    activations: tuple[Activation, ...]
    problems: tuple[str, ...]
    unused_problems: tuple[str, ...]


def read_status(channel: Channel, name: str, *, verify: bool, model: str | None) -> DeviceStatus:
    """Ask the device; see :meth:`edgekit.targets.device.Device.status`.

    Args:
        channel: to the device.
        name: what errors call it.
        verify: whether it reads what is stored.
        model: only this model; None for all.

    Raises:
        DeviceError: it answers something else.
    """
    answer = channel.call("status", verify=verify, model=model, timeout_s=_LIMIT_S)
    return DeviceStatus(
        tuple(read_activation(a, name) for a in answer.items_of("activations", dict)),
        tuple(shortened(problem, 1000) for problem in answer.items_of("problems", str)),
        tuple(shortened(problem, 1000) for problem in answer.items_of("unused", str)),
    )
