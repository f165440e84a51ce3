"""How a recipe meets a card: groups, scores and thresholds, each against what the test can work out by itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

from quantaudit.card.schema import Card, PeakSummary, check_simulation
from quantaudit.errors import FormatError
from quantaudit.gate.evidence import Evidence, fused_groups, gather
from quantaudit.gate.report import GateFinding, GateReport
from quantaudit.gate.run import judge
from quantaudit.model.sites import Group, discover
from quantaudit.policy import Policy, load_policy
from quantaudit.provenance import ModuleInfo
from quantaudit.recipe.parse import parse_recipe
from quantaudit.recipe.skeleton import skeleton_model
from tests.card_factory import make_verification
from tests.recipe_cards import CALM, DYNAMIC, SCHEMES, STATIC, card_of, modules_and_groups, recipe_row, scales_of
from tests.skeletons import FAMILIES, skeleton

WEIGHTS = "weights: {num_bits: 8, strategy: channel}"
INPUT = {
    STATIC: "input_activations: {num_bits: 8, strategy: tensor, observer: static_minmax}",
    DYNAMIC: "input_activations: {num_bits: 8, strategy: token, dynamic: true}",
}
LAYERS = 3
POLICY = load_policy()


def quantize(*groups: tuple[str, str], ignore: str = "lm_head") -> str:
    """A recipe from (target, scheme) pairs."""
    rows = ", ".join(
        f"g{i}: {{targets: ['{target}'], {WEIGHTS}, {INPUT[scheme]}}}" for i, (target, scheme) in enumerate(groups)
    )
    return f"s_stage: {{q_modifiers: {{QuantizationModifier: {{ignore: ['{ignore}'], config_groups: {{{rows}}}}}}}}}"


ALL_STATIC, ALL_DYNAMIC = quantize(("Linear", STATIC)), quantize(("Linear", DYNAMIC))
MLP_DYNAMIC = quantize(("Linear", STATIC), ("re:.*mlp.*", DYNAMIC))


def evidence(text: str, card: Card, policy: Policy = POLICY, simulation: Any = None) -> Evidence:
    return gather(parse_recipe(text, "r.yaml"), card, policy, simulation)


def judged(text: str, card: Card, policy: Policy = POLICY, simulation: Any = None) -> GateReport:
    return judge(evidence(text, card, policy, simulation))


def codes(report: GateReport, *severities: str) -> list[str]:
    return [row.code for row in report.findings if row.severity in (severities or ("error", "inconclusive", "warning"))]


def with_rows(card: Card, *rows: Any) -> Card:
    assert card.simulation is not None
    return card.model_copy(update={"simulation": card.simulation.model_copy(update={"recipes": list(rows)})})


@pytest.mark.parametrize("family", [*FAMILIES, "llama4", "qwen3.5-moe", "deepseek-v3", "mamba2"])
def test_groups_rebuilt_from_a_card_are_those_that_were_measured(family: str) -> None:
    modules, _, groups = modules_and_groups(family)
    card = card_of(family)
    fused = fused_groups(card, skeleton_model(modules))

    def plain(rows: Iterable[Group]) -> list[Group]:
        # Who made the experts is not on a card, and no matter of the gate's.
        return [replace(row, expert_list=None) for row in rows]

    assert plain(fused) == plain(groups) == plain(discover(skeleton(family)).groups)


def test_no_weights_are_made() -> None:
    modules, _, _ = modules_and_groups("llama")
    assert {parameter.device.type for parameter in skeleton_model(modules).parameters()} == {"meta"}


# Scores --------------------------------------------------------------------------------------------------------------


def test_a_score_is_used_for_the_recipe_it_was_taken_on() -> None:
    card = with_rows(card_of(), recipe_row(STATIC, 0.02), recipe_row(DYNAMIC, 0.01))
    assert evidence(ALL_STATIC, card).score.kl == 0.02
    assert evidence(ALL_DYNAMIC, card).score.kl == 0.01
    assert (
        evidence("s_stage: {q_modifiers: {QuantizationModifier: {scheme: INT8, ignore: [lm_head]}}}", card).score.kl
        == 0.01
    )
    other = evidence(quantize(("Linear", STATIC), ignore="re:lm_head|.*layers.0.mlp.down_proj"), card).score
    assert (other.source, other.top1) == ("estimated", None)


def test_a_row_is_found_by_its_digest() -> None:
    digest = evidence(MLP_DYNAMIC, card_of()).resolution.digest
    card = with_rows(card_of(), recipe_row("mine", 0.025, digest=digest), recipe_row(STATIC, 0.02, digest="another"))
    gathered = evidence(MLP_DYNAMIC, card).score
    assert (gathered.source, gathered.kl, gathered.top1) == ("measured", 0.025, 1 - 0.025 / 2)
    # A row that names another assignment is not taken for what its name says.
    assert evidence(ALL_STATIC, card).score.source == "estimated"


@pytest.mark.parametrize("agrees", [True, False, None])
def test_a_recipe_that_was_verified_in_vain_is_not_passed(agrees: bool | None) -> None:
    """By this very recipe's verification alone; what no prediction holds did not contradict one."""
    digest = evidence(ALL_STATIC, card_of()).resolution.digest
    card = with_rows(card_of(), recipe_row(STATIC, 0.01), recipe_row(DYNAMIC, 0.01))
    card = card.model_copy(
        update={"verification": [make_verification("mine", digest=digest, agrees=agrees, reason="It is broken.")]}
    )
    report = judged(ALL_STATIC, card)
    assert ("QA520" in codes(report)) == (agrees is False)
    assert report.outcome == ("inconclusive" if agrees is False else "pass")
    if agrees is False:
        (finding,) = (row for row in report.findings if row.code == "QA520")
        assert finding.message == "`mine` in the basic pipeline: KL 1.31 predicted, KL 1.32 saved. It is broken"
    assert judged(ALL_DYNAMIC, card).outcome == "pass"


@pytest.mark.parametrize(("size", "says"), [(32, "quantaudit simulate"), (48, "QA413")])
def test_what_no_simulation_takes_is_not_sent_to_one(size: int, says: str) -> None:
    weights = f"weights: {{num_bits: 4, strategy: group, group_size: {size}}}"
    recipe = ALL_STATIC.replace(WEIGHTS, weights)
    (unknown,) = (row for row in judged(recipe, card_of()).findings if row.code == "QA514")
    assert says in unknown.remedy


def test_a_row_that_left_something_out_decides_nothing() -> None:
    row = recipe_row(STATIC, 5.0, unsimulated=["lm_head: not measured"], approximate=["observer mse: nearly"])
    report = judged(ALL_STATIC, with_rows(card_of(), row))
    assert (report.outcome, codes(report, "error", "inconclusive")) == ("inconclusive", ["QA417"])
    assert "nearly: observer mse" in report.score.note
    assert "but lm_head: not measured" in report.score.note


@pytest.mark.parametrize(
    ("kl", "outcome", "severity"), [(None, "fail", "error"), (0.01, "inconclusive", "inconclusive")]
)
def test_a_row_that_is_not_finite_never_passes(kl: float | None, outcome: str, severity: str) -> None:
    report = judged(ALL_STATIC, with_rows(card_of(), recipe_row(STATIC, kl, nonfinite=True)))
    assert (report.outcome, codes(report, severity)) == (outcome, ["QA512"])


@pytest.mark.parametrize(
    ("observer", "theirs"), [("minmax", "minmax"), ("mse", "mse"), ("absolute_maximum", "static_minmax")]
)
def test_prices_are_used_for_the_observer_that_they_were_taken_with(observer: str, theirs: str) -> None:
    card = with_rows(card_of())
    assert card.simulation is not None
    schemes = [row.model_copy(update={"observer": observer}) if row.name == STATIC else row for row in SCHEMES]
    simulation = card.simulation.model_copy(update={"schemes": schemes})
    card = card.model_copy(update={"simulation": simulation})
    for name in ("minmax", "mse", "static_minmax"):
        source = evidence(ALL_STATIC.replace("static_minmax", name), card).score.source
        assert source == ("estimated" if name == theirs else "unknown")


def test_a_percentile_is_the_price_of_no_recipe() -> None:
    card = with_rows(card_of())
    assert card.simulation is not None
    schemes = [row.model_copy(update={"observer": "percentile_99.9"}) for row in SCHEMES[:1]]
    card = card.model_copy(update={"simulation": card.simulation.model_copy(update={"schemes": schemes})})
    assert evidence(ALL_STATIC, card).score.source == "unknown"


def test_a_simulation_file_goes_before_the_card() -> None:
    card = with_rows(card_of(), recipe_row(STATIC, 0.02))
    extra = with_rows(card_of(), recipe_row(STATIC, 0.012)).simulation
    assert evidence(ALL_STATIC, card, simulation=extra).score.kl == 0.012
    assert evidence(ALL_DYNAMIC, card, simulation=extra).score.source == "estimated"


def test_an_estimate_is_the_sum_of_the_prices_of_what_is_quantized() -> None:
    card = with_rows(card_of(hurt={"down_proj": 0.05, "qkv_proj": 0.01}))
    calm = LAYERS * CALM
    assert evidence(ALL_STATIC, card).score.kl == pytest.approx(LAYERS * (0.05 + 0.01) + 2 * calm)
    assert evidence(MLP_DYNAMIC, card).score.kl == pytest.approx(LAYERS * 0.01 + 3 * calm)
    left = quantize(("re:.*mlp.*", STATIC), ignore="re:.*layers.1.mlp.down_proj")
    assert evidence(left, card).score.kl == pytest.approx(2 * 0.05 + calm)


@pytest.mark.parametrize(
    "text",
    [
        "s_stage: {q_modifiers: {QuantizationModifier: {scheme: FP8, ignore: [lm_head]}}}",
        ALL_STATIC.replace("static_minmax", "minmax"),
        quantize(("Linear", STATIC), ignore="re:lm_head|.*q_proj"),
    ],
)
def test_without_every_price_there_is_no_estimate(text: str) -> None:
    gathered = evidence(text, card_of())
    assert (gathered.score.source, gathered.score.kl) == ("unknown", None)
    assert "QA514" in codes(judge(gathered))
    assert "quantaudit simulate MODEL --profile P --recipe r.yaml" in next(
        row.remedy for row in judge(gathered).findings if row.code == "QA514"
    )


def test_a_card_without_a_simulation_knows_no_score() -> None:
    report = judged(ALL_STATIC, card_of(simulation=None))
    assert (report.score.source, report.outcome) == ("unknown", "inconclusive")


@pytest.mark.parametrize(
    ("kl", "top1", "outcome", "expected"),
    [
        (POLICY.kl.ready, POLICY.top1.ready, "pass", []),
        (POLICY.kl.ready * 1.001, 1.0, "pass", ["QA510"]),
        (POLICY.kl.care * (1 - 1e-6), 1.0, "pass", ["QA510"]),
        (POLICY.kl.care, 1.0, "inconclusive", ["QA516", "QA510"]),  # its error leaves both sides possible
        (POLICY.kl.care * 1.001, 1.0, "fail", ["QA510"]),
        (0.0, POLICY.top1.ready - 1e-6, "pass", ["QA511"]),
        (0.0, POLICY.top1.care + 1e-6, "pass", ["QA511"]),
        (0.0, POLICY.top1.care, "pass", ["QA511"]),
        (0.0, POLICY.top1.care - 1e-6, "fail", ["QA511"]),
        (1.0, 0.5, "fail", ["QA510", "QA511"]),
        (None, None, "inconclusive", ["QA514"]),
    ],
)
def test_a_measured_score_is_held_against_the_policy(
    kl: float | None, top1: float | None, outcome: str, expected: list[str]
) -> None:
    report = judged(ALL_STATIC, with_rows(card_of(), recipe_row(STATIC, kl, top1=top1)))
    assert (report.outcome, codes(report)) == (outcome, expected)


@pytest.mark.parametrize(
    ("kl", "outcome", "expected"),
    [
        (POLICY.kl.ready, "pass", []),
        (POLICY.kl.care / 2.01, "pass", ["QA510"]),
        (POLICY.kl.care / 2 * 1.01, "inconclusive", ["QA513", "QA510"]),
        (POLICY.kl.care * 2, "inconclusive", ["QA513", "QA510"]),
        (POLICY.kl.care * 2.01, "fail", ["QA510"]),
    ],
)
def test_an_estimate_decides_only_beyond_its_margin(kl: float, outcome: str, expected: list[str]) -> None:
    price = (kl - 3 * LAYERS * CALM) / LAYERS
    card = with_rows(card_of(hurt={"down_proj": price}))
    policy = POLICY.model_copy(
        update={
            "damage": POLICY.damage.model_copy(update={"warning": 9.0}),
            "zeroed_fraction": POLICY.zeroed_fraction.model_copy(update={"warning": 1.0}),
        }
    )
    report = judged(ALL_STATIC, card, policy)
    assert report.score.kl == pytest.approx(kl)
    assert (report.outcome, codes(report)) == (outcome, expected)
    assert "QA513" in codes(report, "info", "inconclusive")


def test_a_recipe_that_is_not_simulated_whole_is_never_passed_by_its_score() -> None:
    rotated = ALL_STATIC.replace("{QuantizationModifier", "{AWQModifier: {}, QuantizationModifier")
    for kl in (0.0, 5.0):
        report = judged(rotated, with_rows(card_of(), recipe_row(STATIC, kl)))
        assert (report.outcome, codes(report, "error", "inconclusive")) == ("inconclusive", ["QA417"])
        assert "AWQ" in report.score.note
    # Not even by a row that a simulation without AWQ wrote under this recipe's own identity.
    digest = evidence(rotated, card_of()).resolution.digest
    report = judged(rotated, with_rows(card_of(), recipe_row("rotated", 0.0, digest=digest)))
    assert (report.score.source, report.outcome) == ("measured", "inconclusive")
    assert "but AWQ" in report.score.note


def test_a_recipe_that_smooths_is_judged_by_its_own_simulation_alone() -> None:
    """Neither by the same recipe without SmoothQuant, nor by prices, which are of groups that were not smoothed."""
    smooth = ALL_STATIC.replace("{QuantizationModifier", "{SmoothQuantModifier: {}, QuantizationModifier")
    report = judged(smooth, with_rows(card_of(), recipe_row(STATIC, 0.0)))
    assert (report.score.source, report.outcome) == ("unknown", "inconclusive")
    assert codes(report, "error", "inconclusive") == ["QA514"]
    assert "smoothing" in report.score.note
    digest = evidence(smooth, card_of()).resolution.digest
    for kl, outcome in ((0.001, "pass"), (5.0, "fail")):
        report = judged(smooth, with_rows(card_of(), recipe_row("smooth", kl, digest=digest)))
        assert (report.score.source, report.outcome) == ("measured", outcome)


# What is quantized, and nothing else ---------------------------------------------------------------------------------


def test_only_what_is_quantized_is_held_against_a_recipe() -> None:
    """The same card, on which everything about down_proj is bad: it matters to the recipe that quantizes it."""
    card = card_of(hurt={"down_proj": 0.4})
    sites = [
        site.model_copy(update={"nonfinite": 5}) if site.name.endswith("down_proj.input") else site
        for site in card.sites
    ]
    _, _, groups = modules_and_groups("llama")
    scales = scales_of([group for group in groups if group.projection != "down_proj"])
    card = card.model_copy(update={"sites": sites, "scales": scales})
    spared = quantize(("Linear", STATIC), ignore="re:lm_head|.*down_proj")
    # Values that are not finite stop every gate, as QA102, which a report gives such a card, does.
    assert codes(judged(spared, card)) == ["QA515"]
    assert codes(judged(spared, card.model_copy(update={"sites": card_of().sites}))) == []
    assert set(codes(judged(ALL_STATIC, card))) >= {"QA502", "QA503", "QA506", "QA507", "QA510"}


def test_dynamic_inputs_need_no_range_and_round_nothing_to_zero() -> None:
    card = card_of(hurt={"down_proj": 0.4}, scales=[])
    assert codes(judged(ALL_DYNAMIC, card)) == []


def test_findings_point_at_what_gave_a_group_its_scheme() -> None:
    text = "\n".join(
        [
            "s_stage:",
            "  q_modifiers:",
            "    QuantizationModifier:",
            "      config_groups:",
            f"        a: {{targets: [Linear], {WEIGHTS}, {INPUT[DYNAMIC]}}}",
            "        b:",
            "          targets:",
            "            - re:.*attn.*",
            "            - re:.*down_proj",
            f"          {WEIGHTS}",
            f"          {INPUT[STATIC]}",
        ]
    )
    report = judged(text, card_of(hurt={"down_proj": 0.4}))
    assert {row.line for row in report.findings if row.code in ("QA506", "QA507")} == {9}
    preset = "s_stage:\n  q_modifiers:\n    QuantizationModifier:\n      scheme: W8A8\n"
    assert [row.line for row in judged(preset, card_of()).findings if row.code == "QA409"] == [3]


def test_findings_name_the_worst_first() -> None:
    card = card_of(hurt={"down_proj": 0.4, "qkv_proj": 0.9})
    report = judged(ALL_STATIC, card)
    by_name = {row.code: row for row in report.findings}
    assert by_name["QA506"].module == "layers.0.self_attn.qkv_proj"  # of three alike, the first
    assert by_name["QA506"].value == 0.9
    assert "qkv_proj` and `layers" in by_name["QA510"].message


def test_the_spread_of_a_moving_average_is_the_cards_own() -> None:
    _, _, groups = modules_and_groups("llama")
    averaged = [
        row.model_copy(update={"observer": "minmax", "scale": (row.scale or 0) * factor, "order_spread": spread})
        for row, factor, spread in zip(scales_of(groups), [0.24, *[0.9] * 20], [1.5, 3.25, *[1.5] * 20], strict=False)
    ]
    # Another format's spread is not this recipe's.
    other = averaged[0].model_copy(update={"scheme": "fp8_e4m3_static_per_tensor", "order_spread": 70.0})
    card = card_of(scales=[*scales_of(groups), *averaged, other])
    text = ALL_STATIC.replace("static_minmax", "minmax")

    def result(text: str) -> GateFinding:
        (finding,) = [row for row in judged(text, card).findings if row.code == "QA412"]
        return finding

    assert result(text).value == 3.25
    assert (
        "over 100 orders of this card's samples the scale of `layers.0.self_attn.o_proj` varies" in result(text).message
    )
    assert "by a factor of 3.25, in the median group by 1.5" in result(text).message
    assert "0.24 (`layers.0.self_attn.qkv_proj`) to 0.90 times" in result(text).message
    constant = text.replace("observer: minmax", "observer: minmax, observer_kwargs: {averaging_constant: 0.5}")
    assert constant != text
    assert result(constant).value is None
    assert "does not hold its scales" in result(constant).message
    assert "QA412" not in codes(judged(ALL_STATIC, card))


@pytest.mark.parametrize("family", ["llama", "qwen3-moe", "gemma3", "phi3"])
def test_smoothquant_reaches_what_the_toolkit_smooths(family: str) -> None:
    model = skeleton(family)
    modifier = SmoothQuantModifier()
    modifier.mappings, modifier.ignore = modifier._infer_mappings_from_model(model), []
    names = {module: name for name, module in model.named_modules()}
    expected = {names[layer] for row in modifier._resolve_mappings(model) for layer in row.balance_layers}
    architecture = type(model).__name__
    card = card_of(family)
    card = card.model_copy(update={"model": card.model.model_copy(update={"architecture": architecture})})
    (smoothing,) = evidence("s_stage: {q_modifiers: {SmoothQuantModifier: {}}}", card).smoothings
    assert smoothing.balance_layers == expected
    assert (smoothing.problem, smoothing.unmatched) == (None, ())


def test_a_simulation_of_other_weights_is_refused_whatever_its_modules_are_called() -> None:
    card = card_of()
    assert card.simulation is not None
    check_simulation(card.simulation, card, where="--simulation")
    other = card.simulation.model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(FormatError, match=r"of other weights \(0000000000000000\) than the card of llama \("):
        check_simulation(other, card, where="--simulation")


@pytest.mark.parametrize(
    ("field", "said"), [("corpus_sha256", "another corpus"), ("profile_sha256", "another profile")]
)
def test_a_simulation_of_other_measurements_than_the_cards_is_refused(field: str, said: str) -> None:
    card = card_of().model_copy(update={"profile_sha256": "1" * 64})
    assert card.simulation is not None
    check_simulation(card.simulation, card, where="--simulation")
    other = card.simulation.model_copy(update={field: "0" * 64})
    with pytest.raises(FormatError, match=rf"simulation is of {said} \(0000000000000000\) .*than the card \("):
        check_simulation(other, card, where="--simulation")


def test_a_recipe_for_the_cache_alone_does_something() -> None:
    report = judged("s_stage: {q_modifiers: {QuantizationModifier: {kv_cache_scheme: {num_bits: 8}}}}", card_of())
    assert codes(report, "error", "inconclusive") == ["QA417"]


@pytest.mark.parametrize("headroom", [0.0, 0.5, 1.5, 100.0, None])
def test_a_residual_beyond_fp16_is_grave_only_in_fp16(headroom: float | None) -> None:
    for dtype in ("float16", "bfloat16"):
        card = card_of(peak=PeakSummary(overall=None, quantized=None, fp16_headroom=headroom))
        card = card.model_copy(update={"model": card.model.model_copy(update={"dtype": dtype})})
        rows = [row.severity for row in judged(ALL_DYNAMIC, card).findings if row.code == "QA505"]
        near = headroom is not None and headroom < POLICY.fp16_headroom.warning
        grave = "error" if near and (headroom or 0) < POLICY.fp16_headroom.error else "warning"
        assert rows == ([] if not near else [grave if dtype == "float16" else "info"])


def test_a_card_that_contradicts_itself_is_an_error() -> None:
    card = card_of()
    orphan = [*card.model.modules, ModuleInfo(name="lost.child", classes=["Linear", "Module"], weight_shape=[1, 1])]
    with pytest.raises(FormatError, match=r"`lost\.child` without the module that holds it"):
        judged(ALL_STATIC, card.model_copy(update={"model": card.model.model_copy(update={"modules": orphan})}))
    assert card.simulation is not None
    strange = [card.simulation.schemes[0].model_copy(update={"weights": {"bits": 8}})]
    with pytest.raises(FormatError, match="bits: Extra inputs"):
        judged(
            ALL_STATIC, card.model_copy(update={"simulation": card.simulation.model_copy(update={"schemes": strange})})
        )


def test_names_from_strangers_are_made_visible() -> None:
    report = judged(
        's_stage: {q_modifiers: {QuantizationModifier: {scheme: W8A8, ignore: [lm_head, "\\e[31m\\u202e"]}}}', card_of()
    )
    (finding,) = [row for row in report.findings if row.code == "QA403"]
    assert "\\u001b[31m\\u202e" in finding.message
    assert finding.message.isprintable()
