"""What people run today: one script per runtime, each the way its vendor's documentation shows.

``python -m benchmarks.vendors.NAME MODEL.py PHOTOS OUT`` makes the runtime's float file and its
static INT8 file in the folder OUT, from a process of its own, calibrated with every photo in
PHOTOS. Nothing of edgekit is used. MODEL.py has ``build()`` and ``example_inputs()``.
"""
