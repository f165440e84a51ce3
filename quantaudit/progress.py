"""How long work reports how far it is, whoever shows it."""

from __future__ import annotations

from typing import Protocol


class Advance(Protocol):
    """Called when `amount` more units of a stage are done."""

    def __call__(self, amount: int = 1) -> None: ...


class Stages(Protocol):
    """Opens a stage of `total` units (tokens, steps) and gives what advances it."""

    def __call__(self, title: str, total: int, unit: str = "steps") -> Advance: ...


def no_advance(amount: int = 1) -> None:
    """Shows nothing."""


def silent_stages(title: str, total: int, unit: str = "steps") -> Advance:
    """Shows nothing."""
    return no_advance
