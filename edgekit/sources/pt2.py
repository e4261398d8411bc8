"""``x.pt2``: a program saved with torch.export.save.

torch reads such a file with pickle, so it can run code: load only files that you trust.
"""

from __future__ import annotations

from edgekit.errors import SourceError
from edgekit.sources.base import LoadedModel, SourceSpec, as_inputs, finish, random_inputs


def load(spec: SourceSpec) -> LoadedModel:
    """Load the program as a module, with its own example inputs unless ``spec.inputs`` is given.

    Raises:
        SourceError: no such file, not a .pt2 of this or an older torch, or weights were given.
    """
    import torch

    path = spec.root / spec.source
    if not path.is_file():
        raise SourceError(f"There is no file {path}.")
    if spec.weights is not None:
        raise SourceError(
            f"{spec.source} holds its own weights; {spec.weights.name} cannot be put into it.",
            remedy="Leave the weights out, or name the Python factory instead of the .pt2.",
        )
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise SourceError(
            f"{path} cannot be loaded by torch {torch.__version__}: {error}".splitlines()[0],
            remedy="Save it again with torch.export.save under this torch version.",
        ) from error
    # An exported module has no eval(): it is what it was when it was exported.
    module = program.module()
    if spec.inputs:
        inputs = random_inputs(spec.inputs)
    else:
        arguments, keywords = program.example_inputs or ((), {})
        if keywords:
            raise SourceError(
                f"{spec.source} takes keyword arguments ({', '.join(keywords)}).",
                remedy="Export the model with positional inputs only.",
            )
        inputs = as_inputs(tuple(arguments), f"The example inputs of {spec.source}")
    return finish(spec, module, inputs, (path,))
