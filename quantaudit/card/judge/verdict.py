"""The answer in words: for every scheme a status, the groups that explain it, and what to do instead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from quantaudit.card.judge.headline import headline
from quantaudit.card.judge.simulated import GOOD_SQNR_DB, zeroed_tensors
from quantaudit.card.schema import Coverage, Finding, SchemeVerdict, SiteRow, Verdict, VerdictLimits, WorstGroup
from quantaudit.card.text import capital, counted, share_in_words
from quantaudit.policy import Policy, Status, judge, passes, scores
from quantaudit.policy.evidence import enough, kl_interval, look
from quantaudit.policy.judge import kl_range
from quantaudit.provenance import CorpusInfo
from quantaudit.simulate.records import GroupRow, RecipeRow, SchemeInfo, Simulation, TensorErrorRow
from quantaudit.simulate.sensitivity.ranking import Measure, measure_of, shares, worst_first

STOPPERS = {"QA104", "QA106", "QA109", "QA110", "QA111", "QA112", "QA114"}
"""Findings that make every number meaningless, or that of another model or text: nothing can be concluded."""
BROKEN = "QA102"
"""Finding of a model that is not ready, quantized or not."""
FEW = 3
"""Remedies that are named."""
_BETTER = 0.75
"""A remedy is named where it brings the KL below this share of the scheme's own."""
_LEAST_ZEROED = 0.00005
"""Share of values that round to zero from which on that is said: less would read 0.00%."""


def decide(
    sites: Sequence[SiteRow],
    coverage: Coverage,
    simulation: Simulation | None,
    findings: Sequence[Finding],
    policy: Policy,
    corpus: CorpusInfo | None = None,
) -> Verdict:
    """Verdict for every simulated scheme; without a simulation, one that says so.

    corpus: which text there is.
    """
    named = {"policy": policy.name, "policy_digest": policy.digest, "extends": list(policy.extends)}
    if simulation is None:
        return Verdict(**named, headline="Measured, not simulated: no verdict.", schemes=[])
    by_name = {site.name: site for site in sites}
    recipes = {row.name: row for row in simulation.recipes}
    obstacles = _obstacles(coverage, findings)
    schemes = []
    for scheme in simulation.schemes:
        recipe = recipes.get(scheme.name)
        broken = any(finding.code == BROKEN for finding in findings)
        scored = recipe is not None and recipe.kl is not None and not recipe.nonfinite
        status, reason = judge(policy, recipe, obstacles, broken=broken, corpus=corpus)
        outlook = None if recipe is None else look(policy, recipe)
        wanted = None if recipe is None or status != "INCONCLUSIVE" else enough(policy, recipe, corpus)
        schemes.append(
            SchemeVerdict(
                scheme=scheme.name,
                title=scheme.title,
                status=status,
                kl=recipe.kl if recipe else None,
                kl_low=outlook.kl.low if outlook else None,
                kl_high=outlook.kl.high if outlook else None,
                top1=recipe.top1 if recipe else None,
                top1_low=outlook.top1.low if outlook else None,
                top1_high=outlook.top1.high if outlook else None,
                tokens_to_decide=wanted.tokens if wanted else None,
                perplexity=recipe.perplexity if recipe else None,
                perplexity_base=recipe.perplexity_base if recipe else None,
                reason=" ".join([reason, *_causes(status, scheme, simulation, findings, policy)]),
                remedy=_remedy(status, scheme, simulation, policy, findings, more_text=scored and not obstacles),
                worst_groups=worst(scheme, simulation, by_name),
            )
        )
    limits = VerdictLimits(kl=list(policy.kl.both), top1=list(policy.top1.both), level=policy.evaluation.level)
    text = _with_why(headline(schemes, simulation.schemes, by_name), findings)
    return Verdict(**named, headline=text, schemes=schemes, limits=limits)


def _with_why(text: str, findings: Sequence[Finding]) -> str:
    """A headline; of a model that is unsound, with the reason."""
    unsound = next((finding for finding in findings if finding.code in {BROKEN, *STOPPERS}), None)
    return text if unsound is None else f"{text} {_sentence(unsound)}"


def worst(scheme: SchemeInfo, simulation: Simulation, sites: Mapping[str, SiteRow], count: int = 3) -> list[WorstGroup]:
    """The groups that hurt most under a scheme, each with its share of the total and an explanation."""
    rows = worst_first(row for row in simulation.groups if row.scheme == scheme.name and row.layer is not None)
    errors = {
        row.group: row for row in simulation.sites if row.scheme == scheme.name and row.observer == scheme.observer
    }
    return [
        _worst_group(
            row,
            sites.get(f"{row.group}.input"),
            errors.get(row.group),
            share,
            measure_of(rows),
            inputs=scheme.input_activations is not None,
        )
        for row, share in list(zip(rows, shares(rows), strict=True))[:count]
    ]


def _worst_group(
    row: GroupRow,
    site: SiteRow | None,
    error: TensorErrorRow | None,
    share: float,
    measure: Measure,
    *,
    inputs: bool,
) -> WorstGroup:
    return WorstGroup(
        group=row.group,
        damage=row.damage,
        price=row.price,
        ranked_by=measure,
        share=share,
        amax=site.amax if site else None,
        zeroed_fraction=error.zeroed_fraction if error else None,
        explanation=explain_group(row, site, error, inputs=inputs),
    )


def explain_group(row: GroupRow, site: SiteRow | None, error: TensorErrorRow | None, *, inputs: bool = True) -> str:
    """Why one group is damaged: its peak, where it sits, and what the scale leaves of ordinary values.

    inputs: whether the scheme quantizes them; else they multiply what rounding the weights leaves out.
    """
    if site is None or site.amax is None or not site.peaks:
        return "Its input was not measured."
    peak = site.peaks[0]
    token = f" ({_quoted(peak.token)})" if peak.token is not None else ""
    if peak.token_kind == "image patch" or (peak.token_id or 0) < 0:  # a vision tower's rows are no tokens
        token, place = "", "an image patch" if peak.position is None else f"image patch {peak.position:,}"
    elif peak.position is None:
        place = f"{'an' if peak.token_kind == 'other token' else 'a'} {peak.token_kind or 'token'}"
    else:
        place = "the first token" if peak.position == 0 else f"position {peak.position:,}"
    text = f"Its input peaks at {site.amax:,.4g} on {place}{token}, channel {peak.channel:,}"
    if site.median:
        text += f", {site.amax / site.median:,.0f} times the median"
    if not inputs:
        return f"{text}: it is not quantized, and multiplies the rounding errors of the weights."
    if error is not None and error.zeroed_fraction is not None and error.scale is not None:
        if error.zeroed_fraction >= _LEAST_ZEROED:
            zeroed = share_in_words(error.zeroed_fraction)
            text += f"; at a scale of {error.scale:.3g}, {zeroed} of its values round to zero"
        if error.sqnr_db is not None and error.sqnr_db >= GOOD_SQNR_DB and error.zeroed_fraction > 0.5:
            text += f", which its SQNR of {error.sqnr_db:.1f} dB does not show"
    elif row.damage_weights_only and row.damage and row.damage_weights_only > row.damage / 2:
        text += "; most of the damage comes from its weights"
    return text + "."


def _remedy(
    status: Status,
    scheme: SchemeInfo,
    simulation: Simulation,
    policy: Policy,
    findings: Sequence[Finding],
    *,
    more_text: bool,
) -> str:
    """What to do. more_text: whether an inconclusive verdict is so for want of text alone."""
    remedies = {
        finding.code: finding.remedy
        for finding in reversed(findings)
        if finding.severity == "error" or finding.code in STOPPERS
    }
    if status == "INCONCLUSIVE":
        stopped = [remedies[code] for code in ("QA101", *sorted(STOPPERS)) if code in remedies]
        if stopped:
            return stopped[0]
        if more_text:
            return "Raise --evaluation-tokens, and give more samples of the text that the model is used on."
        return "Simulate the whole model, on text that reaches every Linear in both splits."
    if BROKEN in remedies:
        return remedies[BROKEN]
    if status == "READY":
        return "Quantize with this scheme."
    scheme_kl = next((row.kl for row in simulation.recipes if row.name == scheme.name), None)
    if scheme_kl is None:
        scheme_kl = math.inf  # whatever is finite does better
    better = [
        row
        for row in sorted(simulation.recipes, key=lambda row: math.inf if row.kl is None else row.kl)
        if row.name != scheme.name
        and row.kl is not None
        and row.top1 is not None
        and row.kl < _BETTER * scheme_kl
        and not row.unsimulated
    ]
    passing = [_named(row, policy) for row in better if passes(policy, row)][:FEW]
    if passing:
        return (
            f"Simulated on the same tokens, these do better: {'; or '.join(passing)}. "
            "`quantaudit advise` finds the least change that is enough."
        )
    if better:
        return (
            f"Nothing simulated here passes the policy `{policy.name}`; {_named(better[0], policy)} comes nearest. "
            "Let `quantaudit advise --unquantized` find groups to leave unquantized."
        )
    return (
        "Nothing simulated here does much better: evaluate on your own tasks, "
        "or let `quantaudit advise --unquantized` find groups to leave unquantized."
    )


def _named(row: RecipeRow, policy: Policy) -> str:
    kl, top1 = scores(policy, row)
    interval = kl_interval(row, policy.evaluation)
    spread = "" if interval is None else f" ({kl_range(policy, interval)})"
    return f"{row.title} (KL {kl}{spread}, top-1 {top1})"


def _obstacles(coverage: Coverage, findings: Sequence[Finding]) -> list[str]:
    stopped = [_sentence(finding) for finding in findings if finding.code in STOPPERS]
    missing = coverage.linears - coverage.linears_measured
    if missing:
        stopped.append(f"{missing:,} of {coverage.linears:,} Linears were not measured.")
    others = [row for row in coverage.unmeasured if row.weights]
    if others and not missing:
        stopped.append(f"{counted(len(others), 'module')} with weights not measured, such as `{others[0].module}`.")
    return stopped


def _causes(
    status: Status, scheme: SchemeInfo, simulation: Simulation, findings: Sequence[Finding], policy: Policy
) -> list[str]:
    """What explains a verdict that is not READY: broken activations, or tensors that lose their ordinary values."""
    broken = [_sentence(finding) for finding in findings if finding.code == BROKEN]
    lost = zeroed_tensors(simulation, scheme, policy)
    if status == "READY" or broken or not lost:
        return broken
    return [
        "One scale that covers the peaks is too coarse for everything else: "
        f"{counted(len(lost), 'tensor')} {'loses' if len(lost) == 1 else 'lose'} most values to zero."
    ]


def _sentence(finding: Finding) -> str:
    return f"{capital(finding.message)}."


def _quoted(token: str) -> str:
    return "`" + token.replace("\n", "\\n").replace("`", "'") + "`"
