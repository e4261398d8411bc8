"""Did-you-mean for names that people type: config keys, runtimes, targets, model names."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str], *, limit: int = 3) -> str:
    """A sentence such as ``Did you mean 'calib'?``, or empty where nothing known is close."""
    import difflib

    close = difflib.get_close_matches(word, sorted(known), n=limit, cutoff=0.65)
    return f"Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
