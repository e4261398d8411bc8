"""LocalTransport keeps the contract of all transports."""

from __future__ import annotations

import pytest

from edgekit.targets.base import Transport
from edgekit.targets.local import LocalTransport
from tests.targets.transport_contract import TransportContract


class TestLocalTransport(TransportContract):
    module = "edgekit.targets.local"

    @pytest.fixture
    def transport(self) -> Transport:
        return LocalTransport()

    @pytest.fixture
    def remake(self) -> str:
        return "from edgekit.targets.local import LocalTransport; transport = LocalTransport()"
