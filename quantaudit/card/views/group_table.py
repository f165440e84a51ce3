"""Every fused group in six columns, with the order that each column gives; a page sorts without comparing anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from quantaudit.card.text import number, percent, visible
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.groups import GroupLine
from quantaudit.simulate.sensitivity.ranking import measure_of

_TITLE_LIMIT = 40
_Value: TypeAlias = Callable[[GroupLine], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """cells: a text for each of `view.groups`; none where it is the group's name.

    order: places in `view.groups` from the smallest value to the largest; those without a value are left out. ranks:
    whether groups stand in the order of this column, worst first, before anyone sorts.
    """

    title: str
    cells: list[str]
    order: list[int]
    ranks: bool = False


def columns(view: CardView) -> list[Column]:
    """Group, peak, what rounds to zero, what it costs under the first static and the first dynamic scheme, damage."""
    lines = view.groups
    if not lines:
        return []
    by_layer = {line.group: place for place, line in enumerate(view.groups_by_layer)}
    names = sorted(range(len(lines)), key=lambda i: by_layer.get(lines[i].group, len(by_layer) + i))
    return [Column(title="group", cells=[], order=names), *_measured(view, lines)]


def _measured(view: CardView, lines: list[GroupLine]) -> Iterator[Column]:
    ranking = view.static or view.dynamic
    both = view.static is not None and view.dynamic is not None
    yield _column("peak |x|", lines, lambda line: line.amax)
    yield _column("rounds to zero", lines, lambda line: line.zeroed_fraction, percent)
    if ranking is None:
        return
    under = _title(view, ranking.name)
    priced = measure_of(lines) == "price"
    if priced:
        yield _column(f"KL, {under}", lines, lambda line: line.price, ranks=True)
        if both and view.dynamic is not None:
            yield _column(f"KL, {_title(view, view.dynamic.name)}", lines, lambda line: line.price_dynamic)
    yield _column(f"block damage, {under}", lines, lambda line: line.damage, ranks=not priced)
    if not priced and both and view.dynamic is not None:
        yield _column(f"block damage, {_title(view, view.dynamic.name)}", lines, lambda line: line.damage_dynamic)


def _title(view: CardView, scheme: str) -> str:
    return visible(view.titles[scheme], limit=_TITLE_LIMIT)


def _column(
    title: str,
    lines: list[GroupLine],
    value: _Value,
    text: Callable[[float | None], str] = number,
    *,
    ranks: bool = False,
) -> Column:
    known = [(found, place) for place, line in enumerate(lines) if (found := value(line)) is not None]
    # Ties keep the order of the groups when the largest come first, which is how people sort.
    order = [place for _, place in sorted(known, key=lambda pair: (pair[0], -pair[1]))]
    return Column(title=title, cells=[text(value(line)) for line in lines], order=order, ranks=ranks)
