"""Counts and shares as the sentences of findings and verdicts have them."""

from __future__ import annotations

from quantaudit.common.rounding import percentage

PRODUCTS = {"native": "native products", "float32": "products in float32, rounded once"}
"""How products of a model's dtype were computed."""


def count(number: int, noun: str) -> str:
    """`1 sample`, `2 samples`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def percent(share: float, *limits: float) -> str:
    """A share in words that never turn "nearly all" into "all", on its own side of every limit."""
    return "all but a few" if 0.9999 < share < 1 else percentage(share, *limits, digits=2)
