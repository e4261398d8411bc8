"""Devices: how edgekit reaches them, puts artifacts on them, measures and activates these there.

``base`` is the transport contract, ``local`` the first transport; ``agent/`` is all that runs on a
device; ``deploy`` and ``probe`` drive it; ``device`` is the door: :func:`device.connect`.
"""

if __name__ != "edgekit.targets":
    # From the repository's root, `import targets` would find this folder, and every module in it a
    # second time under a second name.
    raise ImportError("This folder is the package edgekit.targets: import it by that name.")
