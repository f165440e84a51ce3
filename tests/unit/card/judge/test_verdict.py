"""Findings and verdicts: what each rule fires on, that it names the right module, and that it speaks plainly."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import pytest

from quantaudit.card.build import peak_summary
from quantaudit.card.judge.evidence import CardEvidence
from quantaudit.card.judge.findings import find
from quantaudit.card.judge.verdict import decide, explain_group
from quantaudit.card.schema import Card, Coverage, Finding, SiteRow, Verdict
from quantaudit.common.rounding import significant
from quantaudit.policy import judge, load_policy
from quantaudit.provenance import Provenance, Unmeasured
from quantaudit.simulate.records import RecipeRow, Simulation
from tests.card_factory import DYNAMIC, STATIC, make_card

POLICY = load_policy("default")
EXACT = {"kl_stderr": 0.0, "top1_stderr": 0.0}


@pytest.fixture(scope="module")
def card() -> Card:
    return make_card()


def simulation_of(card: Card, **changes: Any) -> Simulation:
    """The factory's simulation; `changes` go to the static recipe's row, a KL or top-1 as if it were exact."""
    assert card.simulation is not None
    if {"kl", "top1"} & changes.keys():
        changes = EXACT | changes
    recipes = [row.model_copy(update=changes) if row.name == STATIC else row for row in card.simulation.recipes]
    return card.simulation.model_copy(update={"recipes": recipes})


def audit(
    card: Card,
    simulation: Simulation,
    *,
    sites: list[SiteRow] | None = None,
    coverage: Coverage | None = None,
    **corpus: Any,
) -> tuple[list[Finding], Verdict]:
    """Findings and verdict of a card's parts, some of them replaced."""
    sites = card.sites if sites is None else sites
    coverage = coverage or card.coverage.model_copy(
        update={"unmeasured": [], "linears_measured": card.coverage.linears}
    )
    provenance = Provenance(
        quantaudit_version="0",
        model=card.model,
        corpus=card.corpus.model_copy(update=corpus),
        environment=card.environment,
        samples=[],
        sites=[],
        unmeasured=[],
        token_text={},
    )
    evidence = CardEvidence(
        provenance=provenance,
        sites=sites,
        coverage=coverage,
        peak=peak_summary(sites),
        policy=POLICY,
        simulation=simulation,
    )
    findings = find(evidence)
    return findings, decide(sites, coverage, simulation, findings, POLICY)


def only(findings: list[Finding], code: str) -> Finding:
    (finding,) = (finding for finding in findings if finding.code == code)
    return finding


def status(verdict: Verdict, scheme: str) -> str:
    return next(row.status for row in verdict.schemes if row.scheme == scheme)


def test_a_passing_sqnr_does_not_hide_a_tensor_that_rounds_to_zero(card: Card) -> None:
    simulation = simulation_of(card)
    worst = max(
        (row for row in simulation.groups if row.scheme == STATIC and row.damage), key=lambda row: row.damage or 0.0
    )
    sites = [
        row.model_copy(update={"sqnr_db": 25.6, "zeroed_fraction": 0.9999} if row.group == worst.group else {})
        for row in simulation.sites
    ]
    findings, verdict = audit(card, simulation.model_copy(update={"sites": sites}))
    assert status(verdict, STATIC) == "NOT READY"
    assert "would pass an SQNR check" in only(findings, "QA302").message
    explained = verdict.schemes[0].worst_groups[0]
    assert explained.group == worst.group
    assert "99.99% of its values round to zero, which its SQNR of 25.6 dB does not show" in explained.explanation
    assert "zero" in verdict.schemes[0].reason


def test_the_headline_says_whether_and_where(card: Card) -> None:
    _, verdict = audit(card, simulation_of(card))
    assert verdict.headline.startswith(
        "It runs with care: INT8 with a scale for each token. "
        "INT8 with one fixed scale for each tensor breaks it, first at `"
    )
    assert all(f"`{group.group}`" in verdict.headline for group in verdict.schemes[0].worst_groups)


def test_shares_are_of_all_damage(card: Card) -> None:
    simulation = simulation_of(card)
    _, verdict = audit(card, simulation)
    damages = sorted((row.damage or 0.0 for row in simulation.groups if row.scheme == STATIC), reverse=True)
    shares = [group.share for group in verdict.schemes[0].worst_groups]
    assert shares == pytest.approx([damage / sum(damages) for damage in damages[:3]])


def test_the_remedy_names_what_was_simulated_to_do_better_best_first(card: Card) -> None:
    _, verdict = audit(card, simulation_of(card))
    remedy = verdict.schemes[0].remedy
    assert remedy.index("INT8 weights only (KL 0.0071") < remedy.index("INT8 dynamic per token (KL 0.0462")


@pytest.mark.parametrize("kl", [0.001, 0.02])
def test_a_scheme_within_limits_is_ready(card: Card, kl: float) -> None:
    _, verdict = audit(card, simulation_of(card, kl=kl, top1=0.99))
    assert status(verdict, STATIC) == "READY"
    assert verdict.schemes[0].remedy == "Quantize with this scheme."


def test_an_unmeasured_linear_makes_every_verdict_inconclusive(card: Card) -> None:
    coverage = card.coverage.model_copy(
        update={
            "linears_measured": card.coverage.linears - 1,
            "unmeasured": [
                Unmeasured(module="model.layers.3.mlp.up_proj", reason="never ran in the forward pass", weights=True)
            ],
        }
    )
    findings, verdict = audit(card, simulation_of(card, kl=0.001, top1=0.99), coverage=coverage)
    assert {row.status for row in verdict.schemes} == {"INCONCLUSIVE"}
    assert only(findings, "QA101").module == "model.layers.3.mlp.up_proj"
    assert findings[0].severity == "error"


def test_starved_experts_are_one_finding_whatever_they_saw(card: Card) -> None:
    rows = [
        Unmeasured(module=f"model.layers.0.mlp.experts.{i}.up_proj", reason=f"expert saw {i} tokens, fewer than 16",
                   weights=True)
        for i in range(9)
    ]  # fmt: skip
    rows.append(Unmeasured(module="model.visual.proj", reason="no images in the corpus", weights=True))
    coverage = card.coverage.model_copy(update={"unmeasured": rows})
    findings, _ = audit(card, simulation_of(card), coverage=coverage)
    undersampled, silent = (finding for finding in findings if finding.code == "QA101")
    assert undersampled.value == 9
    assert undersampled.message == (
        "9 modules not measured (expert saw 0–8 tokens, fewer than 16), such as "
        "`model.layers.0.mlp.experts.0.up_proj`, `model.layers.0.mlp.experts.4.up_proj`, "
        "`model.layers.0.mlp.experts.8.up_proj`"
    )
    assert "--experts all" in undersampled.remedy
    assert "--samples" in undersampled.remedy
    assert silent.message == "1 module not measured (no images in the corpus)"
    assert "--experts" not in silent.remedy


def test_a_component_without_weights_is_told_but_stops_no_verdict(card: Card) -> None:
    missing = [Unmeasured(module="layers.0.mlp.output", reason="the layer has no MLP")]
    coverage = card.coverage.model_copy(update={"linears_measured": card.coverage.linears, "unmeasured": missing})
    findings, verdict = audit(card, simulation_of(card, kl=0.001, top1=0.99), coverage=coverage)
    assert only(findings, "QA101").severity == "warning"
    assert status(verdict, STATIC) == "READY"


def test_a_part_that_the_model_does_not_have_is_information(card: Card) -> None:
    rows = [Unmeasured(module=f"layers.{i}.mlp.gate", reason="the MLP has no gate", absent=True) for i in range(3)]
    coverage = card.coverage.model_copy(update={"unmeasured": rows})
    findings, _ = audit(card, simulation_of(card), coverage=coverage)
    finding = only(findings, "QA101")
    assert (finding.severity, finding.value, finding.remedy) == ("info", 3, "None is needed.")


def broken_load(card: Card, perplexity: float | None, unigram: float | None, tokens: int = 10_000) -> list[Finding]:
    """QA104 of a model whose recipes look fine."""
    assert card.simulation is not None
    recipes: list[RecipeRow] = [
        row.model_copy(update={"kl": 0.001, "top1": 0.99, "perplexity_base": perplexity})
        for row in card.simulation.recipes
    ]
    evaluation = card.simulation.evaluation.model_copy(update={"unigram_perplexity": unigram, "tokens": tokens})
    simulation = card.simulation.model_copy(update={"recipes": recipes, "evaluation": evaluation})
    findings, verdict = audit(card, simulation)
    matching = [finding for finding in findings if finding.code == "QA104"]
    assert ({row.status for row in verdict.schemes} == {"INCONCLUSIVE"}) == bool(matching)
    assert all(finding.message.capitalize() in verdict.schemes[0].reason for finding in matching)
    return matching


def test_a_model_that_predicts_worse_than_token_frequencies_stops_every_verdict(card: Card) -> None:
    assert [row.value for row in broken_load(card, 1100.0, 1000.0)] == [1100.0]
    assert broken_load(card, 900.0, 1000.0) == []


def test_an_unsound_model_says_so_in_the_headline(card: Card) -> None:
    names = [site.name for site in card.sites]
    sites = [site.model_copy(update={"nonfinite": 7} if site.name == names[5] else {}) for site in card.sites]
    _, verdict = audit(card, simulation_of(card, kl=0.001, top1=0.99), sites=sites)
    assert verdict.headline.endswith(f"Activations first turn NaN or infinite at `{names[5]}` (1 site in all).")


def test_nan_in_the_model_itself_is_not_ready_however_well_the_evaluation_went(card: Card) -> None:
    sites = [site.model_copy(update={"nonfinite": 1} if i == 9 else {}) for i, site in enumerate(card.sites)]
    findings, verdict = audit(card, simulation_of(card, kl=0.0001, top1=1.0), sites=sites)
    assert {row.status for row in verdict.schemes} == {"NOT READY"}
    assert verdict.schemes[0].reason.startswith("The model itself produces NaN or infinite values")
    assert verdict.schemes[0].remedy == only(findings, "QA102").remedy


def test_padding_among_the_text_stops_every_verdict(card: Card) -> None:
    findings, verdict = audit(card, simulation_of(card, kl=0.001, top1=0.99), padded=["row-7", "row-9"])
    finding = only(findings, "QA106")
    assert (finding.value, "`row-7`" in finding.message) == (2.0, True)
    assert {row.status for row in verdict.schemes} == {"INCONCLUSIVE"}
    assert verdict.schemes[0].remedy == finding.remedy


def test_a_scheme_that_breaks_the_model_names_what_does_better(card: Card) -> None:
    """Its own KL is null: everything finite is better."""
    _, verdict = audit(card, simulation_of(card, kl=None, top1=None, nonfinite=True))
    assert status(verdict, STATIC) == "NOT READY"
    assert "these do better: INT8 weights only" in verdict.schemes[0].remedy


def test_a_missing_static_range_is_no_nan(card: Card) -> None:
    _, verdict = audit(card, simulation_of(card, kl=0.001, top1=0.99, nonfinite=True))
    assert status(verdict, STATIC) == "INCONCLUSIVE"
    assert "static ranges are missing" in verdict.schemes[0].reason


def test_an_inconclusive_verdict_is_remedied_by_its_own_cause(card: Card) -> None:
    """FP16 overflow is an error too, but no reason to be inconclusive."""
    sites = [site.model_copy(update={"amax": 1e5} if site.kind == "residual" else {}) for site in card.sites]
    coverage = card.coverage.model_copy(update={"linears_measured": card.coverage.linears - 1, "unmeasured": []})
    findings, verdict = audit(card, simulation_of(card), sites=sites, coverage=coverage)
    assert only(findings, "QA201").severity == "error"
    assert {row.status for row in verdict.schemes} == {"INCONCLUSIVE"}
    assert "reaches every Linear in both splits" in verdict.schemes[0].remedy


def test_chance_is_allowed_for_where_tokens_are_few(card: Card) -> None:
    samples = len(card.simulation.evaluation.samples) if card.simulation else 0
    assert broken_load(card, 3000.0, 1000.0, tokens=samples + 10) == []
    assert only(broken_load(card, 10_000.0, 1000.0, tokens=samples + 10), "QA104").severity == "error"
    assert broken_load(card, 900.0, 1000.0, tokens=samples + 10) == []
    assert broken_load(card, 1300.0, 1000.0, tokens=samples + 1000)


@pytest.mark.parametrize(("perplexity", "said"), [(99.0, False), (101.0, True), (1000.0, True), (2000.0, False)])
def test_little_better_than_token_frequencies_is_said_and_decides_nothing(
    card: Card, perplexity: float, said: bool
) -> None:
    simulation = simulation_of(card, kl=0.001, top1=0.99)
    evaluation = simulation.evaluation.model_copy(update={"unigram_perplexity": 1000.0})
    recipes = [row.model_copy(update={"perplexity_base": perplexity}) for row in simulation.recipes]
    findings, verdict = audit(card, simulation.model_copy(update={"evaluation": evaluation, "recipes": recipes}))
    assert [finding.value for finding in findings if finding.code == "QA115"] == ([perplexity] if said else [])
    assert (verdict.schemes[0].status == "READY") is (perplexity <= 1000)


def test_a_perplexity_beyond_all_numbers_is_no_pass(card: Card) -> None:
    """It is null in a record, as one of NaN logits is; the KL keeps them apart."""
    assert only(broken_load(card, None, 1000.0), "QA104").value is None
    assert card.simulation is not None
    broken = [row.model_copy(update={"perplexity_base": None, "kl": None}) for row in card.simulation.recipes]
    findings, _ = audit(card, card.simulation.model_copy(update={"recipes": broken}))
    assert "QA104" not in {finding.code for finding in findings}


def test_without_a_baseline_nothing_is_concluded_and_the_bar_is_uniform_guessing(card: Card) -> None:
    size = card.model.vocab_size
    assert only(broken_load(card, 1.2 * size, None), "QA104").severity == "error"
    assert only(broken_load(card, 0.9 * size, None), "QA104").severity == "warning"


@pytest.mark.parametrize(("tokens", "stopped"), [(60, False), (10_000_000, True)])
def test_worse_than_guessing_is_said_however_few_the_tokens(card: Card, tokens: int, stopped: bool) -> None:
    simulation = simulation_of(card, kl=0.001, top1=0.99)
    evaluation = simulation.evaluation.model_copy(update={"unigram_perplexity": 354.1, "tokens": tokens})
    recipes = [row.model_copy(update={"perplexity_base": 360.0}) for row in simulation.recipes]
    findings, _ = audit(card, simulation.model_copy(update={"evaluation": evaluation, "recipes": recipes}))
    found = only([finding for finding in findings if finding.value == 360.0], "QA104" if stopped else "QA115")
    assert found.severity == ("error" if stopped else "warning")


def repeating(card: Card, corpus: dict[str, int], **evaluation: int) -> tuple[list[Finding], Verdict]:
    assert card.simulation is not None
    simulation = simulation_of(card, kl=0.001, top1=0.99)
    changed = simulation.evaluation.model_copy(update=evaluation)
    return audit(card, simulation.model_copy(update={"evaluation": changed}), **corpus)


def test_evaluated_on_what_calibrated_stops_every_verdict(card: Card) -> None:
    findings, verdict = repeating(card, {"overlapping": 3}, left_out=0, overlapping=3)
    finding = only(findings, "QA114")
    assert (finding.severity, finding.value) == ("error", 3.0)
    assert {row.status for row in verdict.schemes} == {"INCONCLUSIVE"}
    assert verdict.schemes[0].remedy == finding.remedy
    assert only(findings, "QA113").severity == "warning"


def test_repeats_that_were_left_out_are_said_and_stop_nothing(card: Card) -> None:
    findings, verdict = repeating(card, {"repeated": 2}, left_out=2)
    finding = only(findings, "QA113")
    assert (finding.severity, finding.value) == ("info", 2.0)
    assert status(verdict, STATIC) == "READY"
    assert "QA113" not in {finding.code for finding in repeating(card, {})[0]}


def test_the_first_broken_site_of_the_forward_pass_is_named(card: Card) -> None:
    names = [site.name for site in card.sites]
    broken = {names[12], names[40], names[13]}
    sites = [site.model_copy(update={"nonfinite": 7} if site.name in broken else {}) for site in card.sites]
    findings, verdict = audit(card, simulation_of(card, kl=None, top1=None, nonfinite=True), sites=sites)
    assert names[12] in only(findings, "QA102").message
    assert status(verdict, STATIC) == "NOT READY"
    assert names[12] in verdict.schemes[0].reason


@pytest.mark.parametrize(("peak", "severity"), [(20000.0, None), (40000.0, "warning"), (70000.0, "error")])
def test_fp16_headroom_of_the_residual_stream(card: Card, peak: float, severity: str | None) -> None:
    sites = [site.model_copy(update={"amax": peak} if site.kind == "residual" else {}) for site in card.sites]
    matching = [finding for finding in audit(card, simulation_of(card), sites=sites)[0] if finding.code == "QA201"]
    assert [finding.severity for finding in matching] == ([] if severity is None else [severity])
    if matching:
        assert matching[0].value == pytest.approx(65504 / peak)


def test_cut_samples_and_notes_are_told(card: Card) -> None:
    findings, _ = audit(card, simulation_of(card), truncated=3, notes=["the tokenizer has no chat template"])
    assert "3 samples cut" in only(findings, "QA103").message
    assert only(findings, "QA105").message == "the tokenizer has no chat template"


def test_dynamic_schemes_count_no_zeroed_tensors(card: Card) -> None:
    findings, verdict = audit(card, simulation_of(card))
    assert "static" in only(findings, "QA302").message
    assert status(verdict, DYNAMIC) == "READY WITH CARE"
    assert "zero" not in verdict.schemes[1].reason


def test_a_group_whose_input_was_not_measured_says_so(card: Card) -> None:
    assert card.simulation is not None
    assert explain_group(card.simulation.groups[0], None, None) == "Its input was not measured."


@pytest.mark.parametrize(("share", "said"), [(0.0, None), (0.00004, None), (0.0001, "0.01%"), (0.25, "25.00%")])
def test_values_that_round_to_zero_are_said_where_there_are_any_to_speak_of(
    card: Card, share: float, said: str | None
) -> None:
    assert card.simulation is not None
    error = next(row for row in card.simulation.sites if row.scale is not None)
    changed = error.model_copy(update={"zeroed_fraction": share})
    site = next(site for site in card.sites if site.name == error.site)
    text = explain_group(card.simulation.groups[0], site, changed)
    assert ("round to zero" in text) == (said is not None)
    assert said is None or f"{said} of its values round to zero" in text


def test_inputs_that_are_not_quantized_are_no_cause_of_their_own(card: Card) -> None:
    assert card.simulation is not None
    row = card.simulation.groups[0]
    site = next(site for site in card.sites if site.name == f"{row.group}.input")
    text = explain_group(row, site, None, inputs=False)
    assert text.endswith("it is not quantized, and multiplies the rounding errors of the weights.")
    assert "not quantized" not in explain_group(row, site, None)


def test_without_a_simulation_there_is_no_verdict(card: Card) -> None:
    verdict = decide(card.sites, card.coverage, None, [], POLICY)
    assert (verdict.schemes, "no verdict" in verdict.headline) == ([], True)


def few_tokens(card: Card, tokens: int, samples: int, **static: Any) -> list[Finding]:
    simulation = simulation_of(card, **static)
    evaluation = simulation.evaluation.model_copy(
        update={"tokens": tokens, "samples": [f"s-{i}" for i in range(samples)]}
    )
    return [
        row for row in audit(card, simulation.model_copy(update={"evaluation": evaluation}))[0] if row.code == "QA107"
    ]


@pytest.mark.parametrize(("tokens", "samples"), [(63, 5), (16, 2), (4096, 1)])
def test_a_verdict_on_few_tokens_says_so(card: Card, tokens: int, samples: int) -> None:
    (finding,) = few_tokens(card, tokens, samples, kl=0.001, top1=0.99, kl_stderr=0.00012)
    assert finding.severity == "warning"
    assert (finding.value, finding.threshold) == (tokens, 64)
    assert f"{tokens:,} tokens of {samples} sample" in finding.message
    assert "standard error" in finding.message


@pytest.mark.parametrize(
    ("kl", "error", "reported"),
    [(0.028, 0.0011, True), (0.028, 0.0009, False), (0.16, 0.006, True), (0.09, 0.02, False)],
)
def test_a_kl_near_a_limit_is_given_with_its_error(card: Card, kl: float, error: float, reported: bool) -> None:
    matching = few_tokens(card, 256, 4, kl=kl, kl_stderr=error, top1=0.95 if kl < 0.03 else 0.85)
    assert [row.severity for row in matching] == ["info"] * reported
    assert all(
        f"{significant(kl)} nats with a standard error of {error:.2g}, too near" in row.message for row in matching
    )


def test_without_a_standard_error_only_tokens_and_samples_count(card: Card) -> None:
    assert few_tokens(card, 256, 4, kl=0.03, kl_stderr=None) == []
    (finding,) = few_tokens(card, 4096, 1, kl=0.03, kl_stderr=None)
    assert "standard error" in finding.message


@pytest.mark.parametrize("top1", [0.7998, 0.79999999, 0.8, 0.9199, 0.92])
@pytest.mark.parametrize("kl", [0.03, 0.0300001, 0.15, 0.150001])
def test_no_number_crosses_a_limit_by_being_rounded(card: Card, kl: float, top1: float) -> None:
    """What the reason says of KL and top-1, read back, comes to the same status as the numbers themselves."""
    policy = load_policy()
    _, verdict = audit(card, simulation_of(card, kl=kl, top1=top1))
    judged = verdict.schemes[0]
    shown = re.match(r"KL (\S+) nats per token and (\S+)% of top-1", judged.reason)
    assert shown is not None
    row = (
        simulation_of(card)
        .recipes[0]
        .model_copy(update={"kl": float(shown[1]), "top1": float(Decimal(shown[2]) / 100), "nonfinite": False} | EXACT)
    )
    assert judge(policy, row, [])[0] == judged.status


def test_only_what_passes_the_policy_is_recommended(card: Card) -> None:
    """A recipe just below the limit is not recommended for looking like it; where none passes, the card says so."""
    simulation = simulation_of(card, kl=5.0, top1=0.2)
    poor = [
        row if row.name == STATIC else row.model_copy(update={"kl": 0.2, "top1": 0.7998} | EXACT)
        for row in simulation.recipes
    ]
    _, verdict = audit(card, simulation.model_copy(update={"recipes": poor}))
    remedy = verdict.schemes[0].remedy
    assert remedy.startswith("Nothing simulated here passes the policy `default`")
    assert "top-1 79.98%" in remedy
    edge = [row if row.name == STATIC else row.model_copy(update={"kl": 0.15, "top1": 0.8} | EXACT) for row in poor]
    _, verdict = audit(card, simulation.model_copy(update={"recipes": edge}))
    assert "these do better" in verdict.schemes[0].remedy
