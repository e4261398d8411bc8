"""How good and how fast our INT8 artifacts are, beside each runtime's stock recipe and Olive's.

``python -m benchmarks.quality`` makes all artifacts of a model (:mod:`.making`), times all of them
in interleaved rounds (:mod:`.timing`), lets the selector choose among ours on the set for decisions
(:mod:`.choosing`), and only then runs what is compared on the set for reports (:mod:`.judging`).
"""
