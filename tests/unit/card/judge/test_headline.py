"""The sentence that a card begins with: plain names of schemes, best first, and where the first one breaks."""

from __future__ import annotations

import re

import pytest

from quantaudit.card.judge.headline import headline, plain_name
from quantaudit.card.schema import Card, SchemeVerdict, WorstGroup
from quantaudit.policy import Status
from quantaudit.quant.schemes import NAMED, find_scheme
from quantaudit.simulate.records import SchemeInfo
from quantaudit.simulate.scheme_info import scheme_info
from tests.card_factory import make_card

NAMES = {
    "int8_static_per_tensor": "INT8 with one fixed scale for each tensor",
    "int8_asymmetric_static_per_tensor": "INT8 with one fixed scale for each tensor",
    "int8_dynamic_per_token": "INT8 with a scale for each token",
    "int8_asymmetric_dynamic_per_token": "INT8 with a scale for each token",
    "int8_weights": "W8A16 (INT8 weights alone)",
    "fp8_e4m3_static_per_tensor": "FP8 with one fixed scale for each tensor",
    "fp8_e4m3_dynamic_per_token": "FP8 with a scale for each token",
    "int4_weights_group_128": "W4A16 (INT4 weights alone)",
    "int4_weights_group_128_int8_dynamic_per_token": "W4A8",
    "nvfp4": "NVFP4",
    "mxfp4": "MXFP4",
}


@pytest.fixture(scope="module")
def card() -> Card:
    return make_card(2)


def info(name: str) -> SchemeInfo:
    return scheme_info(find_scheme(name))


def verdict(card: Card, name: str, status: Status, groups: list[WorstGroup] | None = None) -> SchemeVerdict:
    row = card.verdict.schemes[0]
    changes = {"scheme": name, "title": info(name).title, "status": status, "worst_groups": groups or []}
    return row.model_copy(update=changes)


def sentence(card: Card, **statuses: Status) -> str:
    rows = [verdict(card, name, status) for name, status in statuses.items()]
    return headline(rows, [info(name) for name in statuses], {})


@pytest.mark.parametrize("name", NAMED)
def test_every_named_scheme_has_a_plain_name(name: str) -> None:
    assert " ".join(plain_name(info(name))).strip() == NAMES[name]


def test_a_preset_of_another_kind_keeps_its_title() -> None:
    assert plain_name(info("FP8_BLOCK")) == (info("FP8_BLOCK").title, "")


def test_best_first_formats_that_are_scaled_alike_together(card: Card) -> None:
    said = sentence(
        card,
        nvfp4="NOT READY",
        int8_static_per_tensor="NOT READY",
        int8_dynamic_per_token="READY WITH CARE",
        fp8_e4m3_dynamic_per_token="READY WITH CARE",
        int8_weights="READY",
    )
    assert said == (
        "Run it as W8A16 (INT8 weights alone). With care: INT8 or FP8 with a scale for each token. "
        "NVFP4, and INT8 with one fixed scale for each tensor break it."
    )


def test_what_is_not_known_is_said(card: Card) -> None:
    assert sentence(card, nvfp4="INCONCLUSIVE", mxfp4="READY WITH CARE") == (
        "It runs with care: MXFP4. Undecided: NVFP4."
    )


def test_schemes_of_one_plain_name_that_end_otherwise_have_their_titles(card: Card) -> None:
    said = sentence(card, int8_static_per_tensor="READY", int8_asymmetric_static_per_tensor="NOT READY")
    assert said == f"Run it as {info('int8_static_per_tensor').title}. INT8 asymmetric static per-tensor breaks it."
    both = sentence(card, int8_static_per_tensor="READY", int8_asymmetric_static_per_tensor="READY")
    assert both == "Run it as INT8 with one fixed scale for each tensor."


def test_of_several_that_break_it_the_one_whose_groups_are_named_is_said(card: Card) -> None:
    groups = card.verdict.schemes[0].worst_groups[:1]
    rows = [verdict(card, "mxfp4", "NOT READY"), verdict(card, "int8_static_per_tensor", "NOT READY", groups)]
    assert headline(rows, [info(row.scheme) for row in rows], {}) == (
        "MXFP4, and INT8 with one fixed scale for each tensor break it. "
        f"INT8 with one fixed scale for each tensor does so at `{groups[0].group}`."
    )


def test_many_are_counted(card: Card) -> None:
    assert sentence(card, **dict.fromkeys(NAMED, "READY")) == "Run it as any of 11 schemes."


@pytest.mark.parametrize("position", [0, 3, None])
def test_where_it_breaks_and_whether_the_first_token_does_it(card: Card, position: int | None) -> None:
    groups = card.verdict.schemes[0].worst_groups
    sites = {}
    for site in card.sites:
        peaks = [peak.model_copy(update={"position": position}) for peak in site.peaks]
        sites[site.name] = site.model_copy(update={"peaks": peaks})
    name = "int8_static_per_tensor"
    said = headline([verdict(card, name, "NOT READY", groups)], [info(name)], sites)
    named = re.findall(r"`([^`]+)`", said)
    assert named == [group.group for group in groups]
    assert said.startswith("INT8 with one fixed scale for each tensor breaks it, first at `")
    assert ("on the first token" in said) == (position == 0)
