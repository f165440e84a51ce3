"""Numbers shown next to a limit: rounded, but never across it. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

MOST_DIGITS = 15
"""Significant digits that any decimal of a policy keeps as a double."""
FINEST = 1100
"""Digits after the point with which every double is exact."""


def significant(value: float, *limits: float, digits: int = 3, zeros: bool = True) -> str:
    """`digits` significant digits, and more where these would not lie on the value's side of every limit.

    zeros: whether to end in them, as a measured number does; what somebody asked for is as they wrote it.
    """
    kept = "#" if zeros and value else ""
    return _clear_of(value, limits, digits, lambda count: f"{value:{kept}.{count}g}".removesuffix("."), Decimal)


def decimals(value: float, *limits: float, digits: int = 2) -> str:
    """`digits` digits after the point, and more where these would not lie on the value's side of every limit."""
    return _clear_of(value, limits, digits, lambda count: f"{value:.{count}f}", Decimal)


def percentage(share: float, *limits: float, digits: int = 1) -> str:
    """A share of one as a percentage with `digits` digits after the point, or more, as `decimals` has it.

    limits: shares of one too.
    """
    # Multiplied as a decimal: 100 times a double need not be the double that is nearest to the percentage.
    exact = Decimal(repr(float(share))).scaleb(2)
    return _clear_of(
        share,
        limits,
        digits,
        lambda count: f"{exact:.{count}f}%",
        lambda text: Decimal(text.removesuffix("%")).scaleb(-2),
    )


def limit_percentage(limit: float) -> str:
    """A limit as a percentage with all of its digits: 80%, 99.5%."""
    return f"{Decimal(repr(float(limit))).scaleb(2).normalize():f}%"


def limit_number(limit: float) -> str:
    """A limit with all of its digits."""
    return f"{limit:.{MOST_DIGITS}g}"


def _clear_of(
    value: float,
    limits: tuple[float, ...],
    digits: int,
    show: Callable[[int], str],
    read: Callable[[str], Decimal],
) -> str:
    text = show(digits)
    if not limits or value != value or value in (float("inf"), float("-inf")):
        return text
    exact = Decimal(repr(float(value)))
    for count in range(digits, FINEST):
        text = show(count)
        shown = read(text)
        if all(_side(shown, limit) == _side(exact, limit) for limit in limits):
            break
    return text


def _side(value: Decimal, limit: float) -> int:
    """-1 below, 0 at, 1 above."""
    difference = value - Decimal(repr(float(limit)))
    return (difference > 0) - (difference < 0)
