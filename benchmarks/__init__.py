"""Benchmarks, one command each: ``python -m benchmarks.NAME [--json] [--seed N] [--quick]``.

Run from a checkout with the dev dependencies. Each compares in one interleaved run, prints a table
with its conditions, and exits 1 where it misses a bar that it names.
"""
