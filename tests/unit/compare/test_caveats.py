"""Whatever differs in how two cards were made is said, and says what it leaves undecided."""

from __future__ import annotations

from typing import Any

import pytest

from quantaudit.card.schema import Card
from quantaudit.common.findings import rules_of
from quantaudit.compare.caveats import ALL
from quantaudit.compare.subjects.read import read_subjects
from quantaudit.compare.tables import tables
from quantaudit.gate.catalogue import explain
from tests.card_factory import make_findings
from tests.unit.compare.subjects import DYNAMIC, STATIC, a_card, comparison, with_conditions
from tools.rules_page import rules_page


def said(baseline: Card, other: Card) -> dict[str, list[str]]:
    return {row.code: row.undecided for row in comparison(baseline, other).caveats}


def test_of_cards_that_were_made_alike_nothing_is_said() -> None:
    assert said(a_card(), a_card()) == {}


def test_a_text_is_known_by_its_content() -> None:
    card = a_card()
    assert said(card, with_conditions(card, "corpus", name="another name")) == {}


@pytest.mark.parametrize(
    ("part", "changed", "code", "undecided"),
    [
        ("corpus", {"sha256": "0" * 64}, "QA701", list(ALL)),
        ("corpus", {"special_tokens": "none"}, "QA701", list(ALL)),
        ("corpus", {"truncated": 9, "max_length": 77}, "QA701", list(ALL)),
        ("corpus", {"tokens": 77}, "QA702", []),
        ("model", {"dtype": "float16"}, "QA703", []),
        ("environment", {"arithmetic": "float32"}, "QA703", []),
        ("environment", {"attention": "sdpa-other"}, "QA703", []),
        ("environment", {"packages": {"torch": "9.9"}}, "QA704", []),
        ("verdict", {"policy_digest": "1" * 64, "policy": "strict"}, "QA705", ["verdicts"]),
        ("coverage", {"linears_measured": 1}, "QA710", []),
    ],
)
def test_what_differs_is_said(part: str, changed: dict[str, Any], code: str, undecided: list[str]) -> None:
    card = a_card()
    found = said(card, with_conditions(card, part, **changed))
    assert found[code] == undecided


def test_other_evaluation_tokens_are_said() -> None:
    card = a_card()
    assert card.simulation is not None
    for changed in ({"tokens": 99}, {"samples": card.simulation.evaluation.samples[::-1]}):
        evaluation = card.simulation.evaluation.model_copy(update=changed)
        assert said(card, with_conditions(card, "simulation", evaluation=evaluation)) == {"QA707": []}


def test_a_scheme_of_one_name_that_quantizes_otherwise_is_said() -> None:
    card = a_card()
    assert card.simulation is not None
    schemes = [row.model_copy(update={"observer": "other"}) for row in card.simulation.schemes]
    rows = comparison(card, with_conditions(card, "simulation", schemes=schemes)).caveats
    assert [(row.code, row.undecided) for row in rows] == [("QA706", [f"scheme {s}"]) for s in (STATIC, DYNAMIC)]


def test_a_card_that_was_edited_contradicts_itself_or_is_doubtful_says_so() -> None:
    card = a_card()
    assert said(card, card.model_copy(update={"created": "later"})) == {"QA708": []}
    assert said(card.model_copy(update={"seal": None}), card) == {"QA708": []}
    verdict = card.verdict.model_copy(
        update={"schemes": [row.model_copy(update={"kl": 9.0}) for row in card.verdict.schemes]}
    )
    assert said(card, with_conditions(card.model_copy(update={"verdict": verdict}), "model"))["QA709"] == list(ALL)
    doubtful = [row.model_copy(update={"code": "QA104"}) for row in make_findings()[:1]]
    assert said(a_card(), a_card().model_copy(update={"findings": doubtful, "seal": None}))["QA711"] == list(ALL)


def test_what_one_side_lacks_is_said() -> None:
    card = a_card()
    assert card.simulation is not None
    dynamic = [row for row in card.simulation.recipes if row.name == DYNAMIC]
    for kept, lacks in (([], "no simulation of any scheme"), (dynamic, "no INT8 static per tensor")):
        found = comparison(card, a_card(simulation=card.simulation.model_copy(update={"recipes": kept})))
        message = next(row.message for row in found.caveats if row.code == "QA710")
        assert message.endswith(f"has {lacks}")
        rows = [row for table in tables(found) if table.title == "Verdicts and scores" for row in table.rows]
        assert len(rows) == 3 * len(kept)


def test_one_caveat_about_many_is_said_once() -> None:
    card = a_card()
    others = [with_conditions(card, "model", dtype="float16") for _ in range(3)]
    rows = comparison(card, *others).caveats
    assert [(row.code, row.subjects) for row in rows] == [("QA703", [1, 2, 3])]


def test_published_models_were_measured_alike() -> None:
    from quantaudit.compare.run import compare

    assert compare(read_subjects(["published"])).caveats == []


@pytest.mark.parametrize("code", rules_of("comparison"))
def test_every_code_is_explained_and_documented(code: str) -> None:
    row = rules_of("comparison")[code]
    assert row.why in explain(code)
    assert row.remedy in rules_page()
