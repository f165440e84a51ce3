"""Phrases that several rules use: lists of names, and what hurts less than the schemes that a recipe has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantaudit.gate.scheme_summary import SchemeSummary

FEW_BITS = 4
"""Bits of weights at and below which they, and not the inputs, may well be what hurts."""


def gentler(schemes: Iterable[SchemeSummary], what: str) -> str:
    """How to quantize modules with less harm, as fits their schemes: advice to become what one is helps nobody.

    Without a full stop. what: these modules, such as `these groups`.
    """
    schemes = list(schemes)
    options = []
    if any(scheme.static and not scheme.local for scheme in schemes):
        options.append(f"quantize static inputs of {what} dynamically per token")
    elif any(scheme.inputs for scheme in schemes):
        options.append(f"quantize the weights of {what} alone")
    if any(scheme.bits is not None and scheme.bits <= FEW_BITS for scheme in schemes):
        options.append(f"give the weights of {what} more bits or smaller groups")
    text = ", or ".join([*options, "leave them unquantized" if options else f"leave {what} unquantized"])
    return f"{text[0].upper()}{text[1:]}"


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names in backquotes, and how many more there are."""
    text = ", ".join(f"`{name}`" for name in names[:most])
    return f"{text} and {len(names) - most:,} more" if len(names) > most else text


def either(names: Sequence[str]) -> str:
    """Names in backquotes, joined by `or`."""
    return " or ".join(f"`{name}`" for name in names)
