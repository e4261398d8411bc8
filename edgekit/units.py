"""Figures as text, the same in every reason, table and report: ms, MB (10^6 bytes), numbers."""

from __future__ import annotations


def number(value: float, digits: int = 3) -> str:
    """``digits`` significant digits without an exponent: 0.139, 4.2, 412, 1250."""
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e+" in text else text


def milliseconds(nanoseconds: float, digits: int = 3) -> str:
    """``"4.21 ms"``."""
    return f"{number(nanoseconds / 1e6, digits)} ms"


def megabytes(size_bytes: float, digits: int = 3) -> str:
    """``"13.4 MB"``; 1 MB is 1 000 000 bytes, as in edgekit.toml."""
    return f"{number(size_bytes / 1e6, digits)} MB"


def apart(a: float, b: float) -> int:
    """How many digits (3 to 9) it takes to see that two different figures differ."""
    return next((d for d in range(3, 9) if number(a, d) != number(b, d)), 9)
