"""Reads the program text in a TorchScript file without loading it: does it do more than compute?

A TorchScript program can write and read files, and call out to other processes; parts of it run as
soon as PyTorch loads the file (``__setstate__``, traced inputs). So the text is judged first.
PyTorch prints every operator as ``torch.NAME`` or ``ops.NAMESPACE.NAME``; the words below are
refused wherever they stand, because a name can also be reached as a method or through ``getattr``.
"""

from __future__ import annotations

import ast
import io
import tokenize
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.quantize.macs import multiplies

#: Operators with an effect outside of the program.
_EFFECTS = frozenset({"save", "from_file", "rpc_async", "rpc_sync", "rpc_remote"})
#: Where plain tensor operators are; all else (c10d, cuda, profiler, a custom library) is not known.
_NAMESPACES = frozenset(
    {"aten", "prim", "prepacked", "mkldnn", "mkldnn_prepacked", "onednn", "torchvision"}
    | {"quantized", "_quantized", "quantized_decomposed"}
)
_BLANK = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT)


@dataclass(frozen=True)
class Code:
    """``effects`` says what is not a plain tensor operator, and is empty where all is; ``products``
    are the operators that multiply, in ``namespace::name`` form."""

    effects: tuple[str, ...]
    products: tuple[str, ...]


def read(path: Path) -> Code:
    """Judge all program text in the archive at ``path``.

    Raises:
        zipfile.BadZipFile, OSError, ValueError: the archive is damaged.
    """
    effects: set[str] = set()
    products: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            # PyTorch finds entries whatever their case.
            if entry.filename.lower().endswith(".py"):
                _judge(archive.read(entry), effects, products)
    return Code(tuple(sorted(effects)), tuple(sorted(products)))


def _judge(text: bytes, effects: set[str], products: set[str]) -> None:
    try:
        tokens = [
            token
            for token in tokenize.generate_tokens(io.StringIO(text.decode()).readline)
            if token.type not in _BLANK
        ]
    except (tokenize.TokenError, SyntaxError, UnicodeDecodeError):
        effects.add("code that cannot be read")
        return
    words = [token.string for token in tokens]
    for at, token in enumerate(tokens):
        word = _literal(token.string) if token.type == tokenize.STRING else token.string
        if word is None or token.type == tokenize.ERRORTOKEN:
            effects.add("code that cannot be read")
        if word in _EFFECTS:
            effects.add(word)
        if token.type == tokenize.NAME and (at == 0 or words[at - 1] != "."):
            _operator(words[at : at + 5], effects, products)


def _operator(words: Sequence[str], effects: set[str], products: set[str]) -> None:
    """Judge ``torch . NAME`` and ``ops . NAMESPACE . NAME``; in another form they are aliases."""
    if words[0] not in ("torch", "ops"):
        return
    parts = ["aten", *words[2:3]] if words[0] == "torch" else list(words[2:5:2])
    if len(parts) < 2 or words[1] != ".":
        effects.add(f"{words[0]} under another name")
    elif parts[0] not in _NAMESPACES:
        effects.add("::".join(parts))
    elif multiplies(parts[1]):
        products.add("::".join(parts))


def _literal(text: str) -> str | None:
    """The content of a string; None for prefixes, whose meaning PyTorch may see otherwise."""
    if text[0] not in "\"'":
        return None
    try:
        return str(ast.literal_eval(text))
    except (SyntaxError, ValueError):
        return None
