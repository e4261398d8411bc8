"""``torchvision:NAME[@WEIGHTS]``: an architecture of torchvision.models.

Without ``@WEIGHTS`` (a name of its weights enum, or DEFAULT, which downloads) or a weights file the
parameters are random.
"""

from __future__ import annotations

from typing import Any

from edgekit.errors import MissingExtra, SourceError
from edgekit.sources.base import LoadedModel, SourceSpec, finish, load_weights, random_inputs
from edgekit.sources.user_code import user_code
from edgekit.suggest import did_you_mean


def load(spec: SourceSpec) -> LoadedModel:
    """Build the model by its name in ``torchvision.models``.

    Raises:
        MissingExtra: torchvision is not installed.
        SourceError: unknown name (with suggestions), unknown weights, or weights that do not fit.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingExtra("torchvision", "torchvision") from error
    name, _, trained = spec.source.removeprefix("torchvision:").partition("@")
    if name not in models.list_models():
        raise SourceError(
            f"torchvision has no model {name!r}.",
            remedy=did_you_mean(name, models.list_models())
            or "torchvision.models.list_models() names all.",
        )
    enum: Any = models.get_model_weights(name)
    if trained and trained != "DEFAULT" and trained not in enum.__members__:
        raise SourceError(
            f"torchvision has no weights {trained!r} for {name}.",
            remedy=f"It has: {', '.join(enum.__members__)}.",
        )
    with user_code(spec.source, spec.root):
        module = models.get_model(name, weights=getattr(enum, trained) if trained else None)
    notes: tuple[str, ...] = ()
    if spec.weights is not None:
        load_weights(module, spec.weights, unsafe=spec.unsafe_weights)
    elif not trained:
        notes = (f"{spec.source} has random weights: give --weights FILE or {name}@DEFAULT.",)
    module.eval()
    shapes = spec.inputs or ((1, 3, *_usual_size(enum)),)
    dependencies = (spec.weights,) if spec.weights is not None else ()
    return finish(spec, module, random_inputs(shapes), dependencies, notes)


def _usual_size(enum: Any) -> tuple[int, int]:
    """Height and width that the default weights were evaluated at."""
    crop = getattr(enum.DEFAULT.transforms(), "crop_size", None) or [224]
    return (crop[0], crop[-1])
