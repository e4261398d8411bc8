"""``timm:NAME[@pretrained]``: a model of the timm package.

Without ``@pretrained`` (which downloads) or a weights file the parameters are random.
"""

from __future__ import annotations

from edgekit.errors import MissingExtra, SourceError
from edgekit.sources.base import LoadedModel, SourceSpec, finish, load_weights, random_inputs
from edgekit.sources.user_code import user_code
from edgekit.suggest import did_you_mean


def load(spec: SourceSpec) -> LoadedModel:
    """Build the model by its timm name, with or without its pretrained tag.

    Raises:
        MissingExtra: timm is not installed.
        SourceError: unknown name (with suggestions), or weights that do not fit.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("timm", "timm") from error
    name, _, trained = spec.source.removeprefix("timm:").partition("@")
    if trained not in ("", "pretrained"):
        raise SourceError(
            f"{spec.source}: after @ there can only be 'pretrained'.",
            remedy="A tag belongs to the name: timm:mobilenetv3_large_100.ra_in1k@pretrained.",
        )
    if not timm.is_model(name):
        raise SourceError(
            f"timm has no model {name!r}.",
            remedy=did_you_mean(name, timm.list_models()) or "timm.list_models() names all.",
        )
    with user_code(spec.source, spec.root):
        module = timm.create_model(name, pretrained=bool(trained), exportable=True)
    notes: tuple[str, ...] = ()
    if spec.weights is not None:
        load_weights(module, spec.weights, unsafe=spec.unsafe_weights)
    elif not trained:
        notes = (f"{spec.source} has random weights: give --weights FILE or {name}@pretrained.",)
    module.eval()
    usual = timm.get_pretrained_cfg(name)
    shapes = spec.inputs or ((1, *(usual.input_size if usual else (3, 224, 224))),)
    dependencies = (spec.weights,) if spec.weights is not None else ()
    return finish(spec, module, random_inputs(shapes), dependencies, notes)
