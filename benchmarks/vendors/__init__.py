"""What people run today: one script per runtime, each the way its vendor's documentation shows.

``python -m benchmarks.vendors.NAME MODEL.py[:FACTORY] SAMPLES OUT [--dynamic] [--int8-only]`` makes
the runtime's float file and its INT8 file in the folder OUT, from a process of its own: static INT8
calibrated with every sample, or with ``--dynamic`` the vendor's recipe for activations that are
quantized at run time. SAMPLES is a folder of photos or an .npz. Nothing of edgekit is used.
MODEL.py has ``example_inputs()`` and the factory (default ``build``).
"""
