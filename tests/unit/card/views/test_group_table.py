"""The table of all groups: orders against sorting by the card's own rows, unknown values, and cards without schemes."""

from __future__ import annotations

import pytest

from quantaudit.card.schema import Card
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.group_table import Column, columns
from tests.card_factory import DYNAMIC, STATIC, make_card


@pytest.fixture(scope="module")
def card() -> Card:
    return make_card()


def changed(card: Card, **changes: object) -> CardView:
    assert card.simulation is not None
    return CardView(card.model_copy(update={"simulation": card.simulation.model_copy(update=changes)}))


def by_title(view: CardView) -> dict[str, Column]:
    return {column.title: column for column in columns(view)}


@pytest.mark.parametrize(("scheme", "field", "word"), [(STATIC, "price", "KL"), (DYNAMIC, "price", "KL")])
def test_orders_are_those_of_the_cards_rows(card: Card, scheme: str, field: str, word: str) -> None:
    view = CardView(card)
    assert card.simulation is not None
    column = by_title(view)[f"{word}, {view.titles[scheme]}"]
    expected = sorted(
        (row for row in card.simulation.groups if row.scheme == scheme and getattr(row, field) is not None),
        key=lambda row: getattr(row, field),
    )
    values = [getattr(row, field) for row in expected]
    costs = {row.group: getattr(row, field) for row in expected}
    assert [costs[view.groups[place].group] for place in column.order] == values


def test_six_columns_of_which_one_ranks(card: Card) -> None:
    view = CardView(card)
    found = columns(view)
    assert len(found) == 6
    assert [column.title for column in found if column.ranks] == [f"KL, {view.titles[STATIC]}"]
    assert [view.groups[place].group for place in found[0].order][:4] == [
        line.group for line in view.groups_by_layer[:4]
    ]
    ranking = next(column for column in found if column.ranks)
    known = [place for place, line in enumerate(view.groups) if line.price is not None]
    assert ranking.order[::-1] == known


def test_what_is_not_known_has_no_place_in_an_order(card: Card) -> None:
    assert card.simulation is not None
    groups = [row.model_copy(update={"price": None}) for row in card.simulation.groups]
    groups[0] = groups[0].model_copy(update={"damage": None})
    view = changed(card, groups=groups)
    found = by_title(view)
    assert not [title for title in found if title.startswith("KL")]
    damage = found[f"block damage, {view.titles[STATIC]}"]
    assert damage.ranks
    missing = [place for place, line in enumerate(view.groups) if line.damage is None]
    assert set(damage.order) == set(range(len(view.groups))) - set(missing)
    assert {damage.cells[place] for place in missing} == {"—"}


def test_without_a_simulation_there_is_no_table(card: Card) -> None:
    assert columns(CardView(make_card(simulation=None))) == []
