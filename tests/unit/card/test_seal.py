"""A seal shows every edit of a card's content, and nothing else; what amends a card never hides an edit."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantaudit.card.amend import amend_card
from quantaudit.card.render import render_html, render_markdown
from quantaudit.card.schema import Card, dump_card, load_card
from quantaudit.card.seal import check_sealed, seal, seal_state
from quantaudit.errors import FormatError
from tests.card_factory import make_card


@pytest.fixture(scope="module")
def card() -> Card:
    return seal(make_card())


def written(content: Any, path: Path, **options: Any) -> Card:
    path.write_text(json.dumps(content, **options), encoding="utf-8")
    return load_card(path)


def test_the_seal_is_a_sha256_that_anyone_can_compute(card: Card) -> None:
    content = json.loads(dump_card(card))
    digest = content.pop("seal")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_a_sealed_card_is_sealed_in_memory_and_read_again(card: Card, tmp_path: Path) -> None:
    assert seal_state(card) == "sealed"
    (tmp_path / "card.json").write_text(dump_card(card))
    assert seal_state(load_card(tmp_path / "card.json")) == "sealed"
    check_sealed(card, "card.json")


def test_layout_of_the_file_is_no_edit(card: Card, tmp_path: Path) -> None:
    content = json.loads(dump_card(card))
    for options in ({"indent": 4}, {"sort_keys": True}, {"ensure_ascii": False}, {"separators": (",", ":")}):
        assert seal_state(written(content, tmp_path / "card.json", **options)) == "sealed"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        if isinstance(part, dict | list) and part:
            yield from leaves(part, (*path, key))
        else:
            yield (*path, key)


def edit(content: Any, path: tuple[Any, ...]) -> bool:
    """Change the value at a path; whether there is one that can be changed."""
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    old = holder[path[-1]]
    if isinstance(old, bool):
        holder[path[-1]] = not old
    elif isinstance(old, int | float):
        holder[path[-1]] = old + 1
    elif isinstance(old, str):
        holder[path[-1]] = f"{old}x"
    return holder[path[-1]] != old


def test_an_edit_of_any_value_shows(card: Card) -> None:
    simulation = card.simulation
    assert simulation is not None
    few = {name: getattr(simulation, name)[:2] for name in ("sites", "groups", "granularity")}
    rows = {"sites": card.sites[:2], "scales": card.scales[:2], "simulation": simulation.model_copy(update=few)}
    text = dump_card(seal(card.model_copy(update=rows)))
    paths = [path for path in leaves(json.loads(text)) if path != ("seal",)]
    tried = 0
    for path in random.Random(0).sample(paths, 150):
        content = json.loads(text)
        if not edit(content, path):
            continue
        try:
            edited = Card.model_validate(content)
        except ValueError:  # a word of a fixed set, or a number outside its domain
            continue
        tried += 1
        assert seal_state(edited) == "edited", path
    assert tried > 75


def test_a_removed_and_an_added_row_show(card: Card) -> None:
    for name in ("sites", "scales", "findings"):
        rows = getattr(card, name)
        assert seal_state(card.model_copy(update={name: rows[1:]})) == "edited"
        assert seal_state(card.model_copy(update={name: [*rows, rows[0]]})) == "edited"


def test_a_card_without_a_seal_is_said_to_have_none(card: Card) -> None:
    bare = card.model_copy(update={"seal": None})
    assert seal_state(bare) == "unsealed"
    with pytest.raises(FormatError, match=r"card\.json: the card has no seal"):
        check_sealed(bare, "card.json")
    with pytest.raises(FormatError, match="edited after it was written"):
        check_sealed(card.model_copy(update={"created": "1970-01-01T00:00:00+00:00"}), "card.json")


def test_fields_that_a_later_version_adds_break_no_seal(card: Card, tmp_path: Path) -> None:
    """A card of an older version: fields that it did not know are not in its file, nor under its seal."""
    content = json.loads(dump_card(card))
    del content["seal"], content["profile_sha256"], content["model"]["inputs"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    content["seal"] = hashlib.sha256(text.encode()).hexdigest()
    older = written(content, tmp_path / "card.json")
    assert seal_state(older) == "sealed"
    assert seal_state(older.model_copy(update={"created": "now"})) == "edited"


@pytest.mark.parametrize("state", ["sealed", "edited", "unsealed"])
def test_amending_keeps_what_a_seal_says(card: Card, tmp_path: Path, state: str) -> None:
    now = {"sealed": card, "edited": card.model_copy(update={"landscape": make_card().landscape, "created": "2026"})}
    path = tmp_path / "other.json"
    before = now.get(state, card.model_copy(update={"seal": None}))
    path.write_text(dump_card(before))
    assert seal_state(load_card(path)) == state
    for _ in range(2):
        amend_card(path, lambda one: one.model_copy(update={"advice": [*one.advice, *one.advice]}), of=before.created)
        amend_card(path, lambda one: one.model_copy(update={"verification": []}), of=before.created)
        assert seal_state(load_card(path)) == state


def test_pages_say_that_a_card_was_edited(card: Card) -> None:
    edited = card.model_copy(update={"created": "2026-01-01T00:00:00+00:00"})
    for page in (render_html, lambda one: render_markdown(one)[0]):
        assert "edited after it was written" in page(edited)
        assert "edited after it was written" not in page(card)


@pytest.mark.parametrize("name", ["", " ", "\t\n"])
def test_a_card_of_a_model_without_a_name_is_refused(card: Card, tmp_path: Path, name: str) -> None:
    path = tmp_path / "card.json"
    nameless = card.model.model_copy(update={"name": name})
    path.write_text(dump_card(card.model_copy(update={"model": nameless})), encoding="utf-8")
    with pytest.raises(FormatError, match=r"model\.name: .*blank"):
        load_card(path)
