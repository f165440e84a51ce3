"""A rule: a pure function under a stable code, with what documentation needs. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantaudit.common.outcome import GateSeverity
from quantaudit.recipe.yaml_positions import Keys

if TYPE_CHECKING:
    from quantaudit.gate.evidence import Evidence

Check = Callable[["Evidence"], Iterable["Hit"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One thing that a rule found. keys: place in the recipe; severity, why, remedy: where not the rule's own."""

    message: str
    module: str | None = None
    keys: Keys | None = None
    value: float | None = None
    threshold: float | None = None
    severity: GateSeverity | None = None
    why: str | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What is looked for, how bad it is, why, and what to do."""

    code: str
    title: str
    severity: GateSeverity
    why: str
    remedy: str
    check: Check


RULES: dict[str, Rule] = {}
"""By code. A code is never given to another rule."""


def rule(code: str, title: str, *, severity: GateSeverity, why: str, remedy: str) -> Callable[[Check], Check]:
    """Register a function as a rule."""

    def register(check: Check) -> Check:
        if code in RULES:
            raise ValueError(f"{code} is taken by {RULES[code].title!r}")
        RULES[code] = Rule(code=code, title=title, severity=severity, why=why, remedy=remedy, check=check)
        return check

    return register


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names in backquotes, and how many more there are."""
    text = ", ".join(f"`{name}`" for name in names[:most])
    return f"{text} and {len(names) - most:,} more" if len(names) > most else text


def either(names: Sequence[str]) -> str:
    """Names in backquotes, joined by `or`."""
    return " or ".join(f"`{name}`" for name in names)


def count(number: int, noun: str) -> str:
    """`1 module`, `2 modules`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
