"""Readers of a norm that smoothing forgets, and transforms above and below what quantizes."""

from __future__ import annotations

from typing import Any

import pytest

from quantaudit.card.schema import Card
from quantaudit.gate.evidence import gather
from quantaudit.gate.report import GateFinding
from quantaudit.gate.run import judge
from quantaudit.policy import load_policy
from quantaudit.recipe.parse import parse_recipe
from tests.recipe_cards import card_of

QUANTIZE = "QuantizationModifier: {scheme: W8A8, ignore: [lm_head]}"
QKV = "['re:.*q_proj$', 're:.*k_proj$', 're:.*v_proj$']"
GATE_UP = "['re:.*gate_proj$', 're:.*up_proj$']"


def findings(body: str, code: str, card: Card) -> list[GateFinding]:
    text = f"q_stage: {{q_modifiers: {{{body}}}}}"
    report = judge(gather(parse_recipe(text, "r.yaml"), card, load_policy(), None))
    return [row for row in report.findings if row.code == code]


def smooth(*mappings: tuple[str, str], after: str = QUANTIZE) -> str:
    rows = ", ".join(f"[{balanced}, '{norm}']" for balanced, norm in mappings)
    return f"SmoothQuantModifier: {{mappings: [{rows}]}}, {after}"


def test_all_readers_are_enough() -> None:
    both = smooth((QKV, "re:.*input_layernorm$"), (GATE_UP, "re:.*post_attention_layernorm$"))
    assert findings(both, "QA426", card_of()) == []


@pytest.mark.parametrize(
    ("balanced", "norm", "forgotten"),
    [
        ("['re:.*q_proj$', 're:.*k_proj$']", "re:.*input_layernorm$", "v_proj"),
        ("['re:.*up_proj$']", "re:.*post_attention_layernorm$", "gate_proj"),
    ],
)
def test_a_part_of_a_fused_group_is_not_enough(balanced: str, norm: str, forgotten: str) -> None:
    (row,) = findings(smooth((balanced, norm)), "QA426", card_of())
    assert (row.severity, row.value) == ("error", 3.0)
    assert f"{forgotten}`" in row.message


def test_a_router_reads_what_the_experts_read() -> None:
    experts = "['re:.*experts.*gate_proj$', 're:.*experts.*up_proj$']"
    (row,) = findings(smooth((experts, "re:.*post_attention_layernorm$")), "QA426", card_of("qwen3-moe"))
    assert (row.severity, "router" in row.message) == ("warning", True)


def test_a_shared_expert_reads_what_the_routed_ones_read() -> None:
    experts = "['re:.*experts.*gate_proj$', 're:.*experts.*up_proj$']"
    rows = findings(smooth((experts, "re:.*post_attention_layernorm$")), "QA426", card_of("qwen3.5-moe"))
    assert any("shared_expert" in row.message for row in rows if row.severity == "error")


def test_a_norm_that_feeds_the_residual_stream_has_it_as_a_reader() -> None:
    (row,) = findings(smooth((GATE_UP, "re:.*post_attention_layernorm$")), "QA426", card_of("gemma3"))
    assert "residual stream" in row.message
    assert findings(smooth((GATE_UP, "re:.*pre_feedforward_layernorm$")), "QA426", card_of("gemma3")) == []


@pytest.mark.parametrize(("family", "severities"), [("gemma2", ["error"]), ("gemma3", ["error"]), ("gemma1", [])])
def test_what_llm_compressor_infers_for_a_sandwich_of_norms_is_an_error(family: str, severities: list[str]) -> None:
    rows = findings(f"SmoothQuantModifier: {{}}, {QUANTIZE}", "QA426", card_of(family))
    assert [row.severity for row in rows] == severities


def test_readers_are_told_by_what_was_measured_too() -> None:
    """Two groups of one layer with the same statistics read one tensor, as in blocks whose halves run side by side."""

    def measured(card: Card, same: set[str]) -> Card:
        changed = [
            site.model_copy(update={"mean": 1.0 if any(part in site.name for part in same) else float(index + 2)})
            for index, site in enumerate(card.sites)
        ]
        return card.model_copy(update={"sites": changed})

    body = smooth((QKV, "re:.*input_layernorm$"))
    assert findings(body, "QA426", measured(card_of(), {"qkv_proj"})) == []
    (row,) = findings(body, "QA426", measured(card_of(), {"layers.0.self_attn.qkv_proj", "layers.0.mlp.gate_up_proj"}))
    assert "layers.0.mlp.gate_proj" in row.message


LATE: dict[str, Any] = {
    "apart": ("GPTQModifier: {scheme: W8A8, targets: ['re:.*self_attn.*_proj$']}", GATE_UP, 0),
    "same": ("GPTQModifier: {scheme: W8A8, targets: ['re:.*mlp.*_proj$']}", GATE_UP, 1),
}


@pytest.mark.parametrize("case", LATE)
@pytest.mark.parametrize("name", ["AWQModifier", "SmoothQuantModifier"])
def test_only_what_a_transform_changes_must_come_after_it(case: str, name: str) -> None:
    first, balanced, expected = LATE[case]
    norm = "re:.*post_attention_layernorm$"
    awq = f"AWQModifier: {{mappings: [{{smooth_layer: '{norm}', balance_layers: {balanced}}}]}}"
    step = awq if name == "AWQModifier" else f"SmoothQuantModifier: {{mappings: [[{balanced}, '{norm}']]}}"
    rest = "QuantizationModifier: {scheme: W8A8, targets: ['re:.*mlp.*_proj$']}"
    assert len(findings(f"{first}, {step}, {rest}", "QA416", card_of())) == expected
