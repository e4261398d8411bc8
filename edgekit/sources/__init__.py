"""Where a model comes from: ``file.py:factory``, ``torchvision:NAME``, ``x.pt2`` and so on."""

from __future__ import annotations

from edgekit import registry
from edgekit.errors import SourceError
from edgekit.sources.base import LoadedModel, SourceSpec
from edgekit.suggest import did_you_mean

__all__ = ["LoadedModel", "SourceSpec", "kind_of", "load"]

_FORMS = "file.py:factory, package.module:factory, torchvision:NAME, timm:NAME or x.pt2"
_LATER = ("hf", "keras", "ultralytics")


def load(spec: SourceSpec) -> LoadedModel:
    """Load a model from whatever ``spec.source`` names. Runs the user's code.

    Raises:
        SourceError: the source has no known form, or the model cannot be built or run.
        MissingExtra: a package that the source needs is not installed.
    """
    loaded: LoadedModel = registry.load("sources", kind_of(spec.source))(spec)
    return loaded


def kind_of(source: str) -> str:
    """The name in the registry of the source that handles ``source``.

    Raises:
        SourceError: the text has none of the known forms.
    """
    prefix, colon, _ = source.partition(":")
    if colon and prefix in registry.sources() and prefix not in ("python", "pt2"):
        return prefix
    if prefix in _LATER:
        raise SourceError(f"The source {prefix}: is not available in this version of edgekit.")
    if source.endswith(".pt2"):
        return "pt2"
    where, _, attribute = source.rpartition(":")
    dotted = all(part.isidentifier() for part in where.split("."))
    if attribute and (where.endswith(".py") or dotted):
        known = [name for name in registry.sources() if name not in ("python", "pt2")]
        guess = did_you_mean(where, known)
        if guess and not where.endswith(".py") and not _is_module(where):
            raise SourceError(f"There is no model source {where!r}.", remedy=guess)
        return "python"
    missing = source.endswith(".py")
    raise SourceError(
        f"{source!r} does not say which function of the file builds the model."
        if missing
        else f"{source!r} is not a model that edgekit can load.",
        remedy=f"Write {source}:FUNCTION." if missing else f"A model is {_FORMS}.",
    )


def _is_module(name: str) -> bool:
    import importlib.util

    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
