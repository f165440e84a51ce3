"""What readers ask of a card is answered from its own numbers, and what it does not know is said."""

from __future__ import annotations

import re
from html import unescape

import pytest

from quantaudit.card.render import render_html
from quantaudit.card.schema import Card
from quantaudit.card.text import number, percent
from quantaudit.card.views.answers import answers, scheme_bytes, sizes_note
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.facts import family, model_argument, report_command
from tests.card_factory import STATIC, make_card


@pytest.fixture(scope="module")
def card() -> Card:
    return make_card()


def said(card: Card) -> dict[str, str]:
    return {answer.question: answer.text for answer in answers(CardView(card))}


def test_every_question_has_its_answer(card: Card) -> None:
    found = said(card)
    static = next(row for row in card.verdict.schemes if row.scheme == STATIC)
    assert card.simulation is not None
    expected = {
        "Is static quantization safe?": [
            "No: ", static.title, number(static.kl, card.verdict.limits.kl), percent(static.top1),
        ],
        "How sure is that?": [
            f"{card.simulation.evaluation.tokens:,} tokens", f"{card.coverage.linears_measured:,} of", "95%",
        ],
        "Which layers break, and why?": [
            *(row.group for row in static.worst_groups), static.worst_groups[0].explanation[1:],
        ],
        "What to run instead?": ["READY WITH CARE"],
        "What does it take in bytes?": ["MiB in bfloat16"],
        "What was not judged?": ["Your own tasks", "texts longer than", "caches", "1 Linear that was not measured"],
        "Is the key-value cache safe?": ["Not judged"],
        "How does it compare with its family?": [card.landscape.reading],
        "Was it verified?": ["llm-compressor"],
        "How can it be reproduced?": ["quantaudit report", card.model.fingerprint[:16], card.corpus.sha256[:16]],
    }  # fmt: skip
    assert list(found) == list(expected)
    for question, parts in expected.items():
        assert [part for part in parts if part not in found[question]] == [], found[question]


def test_what_was_not_simulated_is_not_answered(card: Card) -> None:
    verdict = card.verdict.model_copy(update={"schemes": [], "headline": "Measured, not simulated: no verdict."})
    bare = card.model_copy(update={"simulation": None, "verdict": verdict, "advice": [], "verification": []})
    found = said(bare)
    assert found["Is static quantization safe?"].startswith("Not known")
    assert found["Which layers break, and why?"].startswith("Not known")
    assert found["What to run instead?"].startswith("Not known")
    assert "no quantization was simulated" in found["How sure is that?"]
    assert "any quantization" in found["What was not judged?"]


def test_an_undecided_verdict_is_never_a_yes(card: Card) -> None:
    rows = [
        row.model_copy(update={"status": "INCONCLUSIVE", "reason": "Too little text."}) for row in card.verdict.schemes
    ]
    found = said(card.model_copy(update={"verdict": card.verdict.model_copy(update={"schemes": rows})}))
    assert found["Is static quantization safe?"].startswith("Not known")
    assert found["Is static quantization safe?"].endswith("INCONCLUSIVE: Too little text.")
    assert found["Which layers break, and why?"].startswith("Not known")


def test_the_command_that_verifies_is_whole(card: Card) -> None:
    command = said(card.model_copy(update={"verification": []}))["Was it verified?"].split("`")[1]
    assert command == f"quantaudit verify RECIPE {model_argument(card)} --card card.json"


def test_other_fixed_scales_that_end_otherwise_are_named(card: Card) -> None:
    assert card.simulation is not None
    info = next(row for row in card.simulation.schemes if row.name == STATIC)
    verdict = next(row for row in card.verdict.schemes if row.scheme == STATIC)
    simulation = card.simulation.model_copy(
        update={"schemes": [*card.simulation.schemes, info.model_copy(update={"name": "other"})]}
    )
    other = verdict.model_copy(update={"scheme": "other", "title": "Another one", "status": "READY"})
    verdicts = card.verdict.model_copy(update={"schemes": [*card.verdict.schemes, other]})
    found = said(card.model_copy(update={"simulation": simulation, "verdict": verdicts}))
    assert found["Is static quantization safe?"].startswith("No: ")
    assert found["Is static quantization safe?"].endswith("; Another one is READY.")


def test_bytes_count_what_is_quantized_and_what_is_not(card: Card) -> None:
    """8-bit codes and a scale of two bytes for each row, in place of two bytes for each value."""
    assert card.simulation is not None
    groups = [row for row in card.simulation.groups if row.scheme == STATIC and row.layer is not None]
    shapes = {member: [64, 32] for row in groups for member in row.members}
    known = {module.name: module for module in card.model.modules}
    any_module = card.model.modules[0]
    modules = [
        any_module.model_copy(update={"name": name, "weight_shape": shape}) for name, shape in shapes.items()
    ] + [module for name, module in known.items() if name not in shapes]
    measured = card.model_copy(update={"model": card.model.model_copy(update={"modules": modules})})
    info = card.simulation.schemes[0]
    saved = len(shapes) * (64 * 32 * 2 - (64 * 32 + 64 * 2))
    assert scheme_bytes(measured, info) == 2 * card.model.parameters - saved
    assert sizes_note(measured) is None


@pytest.mark.parametrize(
    ("bits", "kind", "inputs", "noted"),
    [(4, "int", True, True), (4, "int", False, False), (4, "float", True, False), (8, "int", True, False)],
)
def test_codes_that_take_more_bytes_than_bits_are_noted(
    card: Card, bits: int, kind: str, inputs: bool, noted: bool
) -> None:
    assert card.simulation is not None
    members = {name for row in card.simulation.groups for name in row.members}
    any_module = card.model.modules[0]
    modules = [any_module.model_copy(update={"name": name, "weight_shape": [64, 32]}) for name in members]
    info = card.simulation.schemes[0]
    few = info.model_copy(
        update={
            "weights": (info.weights or {}) | {"num_bits": bits, "type": kind},
            "input_activations": info.input_activations if inputs else None,
        }
    )
    changed = card.model_copy(
        update={
            "model": card.model.model_copy(update={"modules": modules}),
            "simulation": card.simulation.model_copy(update={"schemes": [few]}),
        }
    )
    note = sizes_note(changed)
    assert (note is not None) == noted
    if note is not None:
        assert few.title in note
        assert note in said(changed)["What does it take in bytes?"]


def test_answers_lead_to_sections_of_the_page(card: Card) -> None:
    page = render_html(card)
    listed = page[page.index('<section id="answers">') : page.index('<section id="findings">')]
    links = re.findall(r'<a href="#(\w+)">', listed)
    assert len(links) == 10
    assert [name for name in links if f'id="{name}"' not in page] == []
    assert unescape(listed).count("<dt>") == 10


def test_more_schemes_than_lead_stand_in_a_table_and_the_others_are_folded(card: Card) -> None:
    third = card.verdict.schemes[1].model_copy(update={"title": "A third scheme", "kl": 0.5})
    page = render_html(
        card.model_copy(update={"verdict": card.verdict.model_copy(update={"schemes": [*card.verdict.schemes, third]})})
    )
    begin, answered = page.index('id="verdict"'), page.index('id="answers"')
    verdicts = page[begin:answered]
    assert verdicts.index("A third scheme") < verdicts.index("<details>") < verdicts.rindex("A third scheme")
    assert [verdicts.count(row.title) for row in card.verdict.schemes] == [2, 2]
    assert "Verdicts of all schemes" not in render_html(card)


def test_the_command_that_reproduces_a_card_has_what_its_numbers_rest_on(card: Card) -> None:
    assert card.simulation is not None
    assert "--evaluation-tokens" not in report_command(card)
    few = card.simulation.evaluation.model_copy(update={"tokens": 1024})
    short = card.model_copy(update={"simulation": card.simulation.model_copy(update={"evaluation": few})})
    assert "--evaluation-tokens 1024" in report_command(short)
    for policy, given in (("strict", "--policy strict"), ("ours", "--policy FILE")):
        verdict = card.verdict.model_copy(update={"policy": policy})
        assert given in report_command(card.model_copy(update={"verdict": verdict}))


def test_a_family_goes_by_architecture_whatever_a_checkpoint_is_called(card: Card) -> None:
    for model_type, name, count in (("qwen3_moe", "Qwen3", 4), ("gemma3_text", "Gemma3", 2), ("gemma3", "Gemma3", 2)):
        model = card.model.model_copy(update={"model_type": model_type, "name": "mine"})
        found, peaks = family(card.model_copy(update={"model": model}))
        assert (found, len(peaks)) == (name, count)
        assert peaks == sorted(peaks)
    assert family(card) == ("SmolLM2", [])
