"""Phrases that several rules about artifacts use."""

from __future__ import annotations

import math


def not_finite(value: float) -> str:
    """`NaN`, `infinite` or `−infinite`, for a value that is not finite."""
    return "NaN" if math.isnan(value) else f"{'−' if value < 0 else ''}infinite"
