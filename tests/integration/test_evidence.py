"""Text that is no evidence: copies, text that calibrated, a single word. What is READY on text never is on these."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantaudit.card.schema import Card
from quantaudit.gate.report import GateReport
from quantaudit.gate.run import gate
from quantaudit.pipeline.audit import audit
from quantaudit.policy import load_policy
from quantaudit.settings import Settings
from tests.learned import RARE, corpus_rows, learned_checkpoint, write_corpus

DYNAMIC = "int8_dynamic_per_token"
RECIPE = """\
quant_stage:
  quant_modifiers:
    QuantizationModifier:
      targets: [Linear]
      ignore: [lm_head]
      scheme: W8A8
"""
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned_checkpoint(tmp_path_factory.mktemp("learned") / "dense", "dense")


def card_of(model: Path, rows: Rows, folder: Path) -> Card:
    corpus = write_corpus(folder / "text.jsonl", rows)
    settings = Settings.of(str(model), str(corpus), score="damage", evaluation_tokens=700, scheme_set="int8")
    return audit(settings).card


def status(card: Card) -> str:
    return {verdict.scheme: verdict.status for verdict in card.verdict.schemes}[DYNAMIC]


def gated(card: Card, folder: Path) -> GateReport:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    return gate(recipe, card, load_policy())


def codes(card: Card) -> set[str]:
    return {finding.code for finding in card.findings}


def distinct_rows(count: int) -> Rows:
    """Texts of which none has thirteen words in a row in common with another: by chance, half of the texts have."""
    rows: Rows = []
    stretches: set[tuple[str, ...]] = set()
    for drawn in corpus_rows(40 * count):
        words = drawn["text"].split()
        own = {tuple(words[i : i + 13]) for i in range(len(words) - 12)}
        if stretches.isdisjoint(own) and len(rows) < count:
            stretches |= own
            rows.append({**drawn, "split": "evaluation" if len(rows) % 3 == 2 else "calibration"})
    return rows


def one_word_of_forty(rows: Rows) -> Rows:
    """Copies of one text that differ in a word each."""
    words = rows[1]["text"].split()
    return [
        {**row, "text": " ".join([*words[: k % len(words)], RARE, *words[k % len(words) + 1 :]])}
        for k, row in enumerate(rows)
    ]


def second_halves(rows: Rows) -> Rows:
    """Every text that is evaluated is the second half of one that calibrates."""
    calibrating = [row for row in rows if row["split"] == "calibration"]
    halves = [row["text"].split()[len(row["text"].split()) // 2 :] for row in calibrating]
    return [*calibrating, *({"text": " ".join(half), "split": "evaluation"} for half in halves if len(half) > 12)]


def windows(rows: Rows) -> Rows:
    """One document, in windows of which each shares three quarters with the next."""
    words = " ".join(row["text"] for row in rows[:8]).split()
    texts = [" ".join(words[i : i + 40]) for i in range(0, len(words) - 40, 10)]
    return [{"text": text, "split": "evaluation" if k % 3 == 2 else "calibration"} for k, text in enumerate(texts)]


def copies(rows: Rows) -> Rows:
    return [{**row, "text": rows[1]["text"], "id": f"copy {k}"} for k, row in enumerate(rows)]


def spaced(rows: Rows) -> Rows:
    """Copies that differ in white space alone."""
    return [{**row, "text": rows[1]["text"].replace(" ", " " * (1 + k % 7))} for k, row in enumerate(rows)]


def in_both(rows: Rows) -> Rows:
    """Every text of the evaluation split calibrates too."""
    held_out = [row for row in rows if row["split"] == "evaluation"]
    return [*held_out, *({**row, "split": "calibration"} for row in held_out)]


def continued(rows: Rows) -> Rows:
    """Every text of the evaluation split goes on a little further than one that calibrates."""
    held_out = [row for row in rows if row["split"] == "evaluation"]
    cut = [{**row, "text": row["text"].rsplit(" ", 3)[0], "split": "calibration"} for row in held_out]
    return [*held_out, *cut]


def one_word(rows: Rows) -> Rows:
    """Texts of one word, each of another length."""
    return [{**row, "text": "bal " * (20 * k + 20)} for k, row in enumerate(rows[:6])]


def test_distinct_texts_are_evidence(model: Path, tmp_path: Path) -> None:
    card = card_of(model, distinct_rows(60), tmp_path)
    assert status(card) == "READY"
    assert gated(card, tmp_path).outcome == "pass"
    assert not codes(card) & {"QA104", "QA113", "QA114"}


@pytest.mark.parametrize("change", [copies, spaced, in_both, continued, one_word_of_forty, second_halves, windows])
def test_copies_and_calibrated_text_are_none(model: Path, tmp_path: Path, change: Callable[[Rows], Rows]) -> None:
    card = card_of(model, change(distinct_rows(60)), tmp_path)
    assert {verdict.status for verdict in card.verdict.schemes} == {"INCONCLUSIVE"}
    assert codes(card) >= {"QA113", "QA114"}
    report = gated(card, tmp_path)
    assert report.outcome == "inconclusive"
    assert any("QA114" in finding.message for finding in report.findings)


def test_copies_among_the_evaluated_texts_count_once(model: Path, tmp_path: Path) -> None:
    """One text in each split, each of it given often: one sample is no interval."""
    rows = [{**row, "text": corpus_rows(60)[row["split"] == "evaluation"]["text"]} for row in corpus_rows(60)]
    card = card_of(model, rows, tmp_path)
    assert status(card) == "INCONCLUSIVE"
    assert card.simulation is not None
    assert len(card.simulation.evaluation.samples) == 1
    assert "1 sample" in card.verdict.schemes[0].reason
    assert gated(card, tmp_path).outcome == "inconclusive"


def test_a_few_copies_are_left_out_and_the_rest_decides(model: Path, tmp_path: Path) -> None:
    rows = distinct_rows(60)
    distinct = card_of(model, rows, tmp_path)
    held_out = [row for row in rows if row["split"] == "evaluation"]
    card = card_of(model, [*rows, *held_out[:3], {**held_out[4], "split": "calibration"}], tmp_path)
    assert status(card) == "READY"
    assert distinct.simulation is not None
    assert card.simulation is not None
    assert card.simulation.evaluation.left_out == 4
    assert (card.corpus.overlapping, card.corpus.repeated) == (1, 3)
    report = gated(card, tmp_path)
    assert report.outcome == "pass"
    assert "4 evaluation samples left out" in " ".join(finding.message for finding in report.findings)


def test_a_single_word_shows_no_model(model: Path, tmp_path: Path) -> None:
    """However well, or badly, it is predicted: a model that does worse than chance is never READY on it."""
    card = card_of(model, one_word(corpus_rows(60)), tmp_path)
    assert {verdict.status for verdict in card.verdict.schemes} <= {"INCONCLUSIVE", "NOT READY"}
    assert "QA104" in codes(card)
    assert gated(card, tmp_path).outcome != "pass"
