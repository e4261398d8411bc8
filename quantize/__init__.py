"""From a PyTorch model to artifacts: prepare, calibrate, correct, export, inspect.

One preparation and one calibration serve all runtimes; each ``to_*`` module writes one format.
"""

if __name__ != "edgekit.quantize":
    # From the repository's root, `import quantize` would find this folder, and every module in it
    # a second time under a second name.
    raise ImportError("This folder is the package edgekit.quantize: import it by that name.")
