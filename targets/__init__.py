"""Devices: how edgekit reaches them, puts artifacts on them, measures and activates these there.

``base`` is the transport contract, ``local`` the first transport; ``agent/`` is all that runs on a
device; ``deploy`` and ``probe`` drive it; ``device`` is the door: :func:`device.connect`.
"""
