"""Whether a recipe is safe on a checkpoint, from the checkpoint's card alone: no weights, no model code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from quantaudit._version import __version__
from quantaudit.card.schema import Card, check_simulation
from quantaudit.card.text import capital, visible
from quantaudit.common.findings import Hit, Rule, apply
from quantaudit.common.outcome import SEVERITY_ORDER, Outcome
from quantaudit.common.rounding import significant
from quantaudit.errors import FormatError, RecipeError
from quantaudit.gate.catalogue import all_rules
from quantaudit.gate.evidence import Evidence, gather
from quantaudit.gate.report import GateFinding, GateReport, Limits
from quantaudit.gate.rules import RULES
from quantaudit.policy import Policy, load_policy
from quantaudit.recipe.parse import parse_recipe, read_recipe
from quantaudit.simulate.records import Simulation

SHIPPED = ("default", "strict", "lenient")
"""Policies that come with the package."""
_OF_ENGINES = {"QA421", "QA422", "QA423"}
"""What vLLM reads otherwise, keeps unquantized, or has no kernel for: a warning, since others may run it."""


def gate(recipe: Path, card: Card, policy: Policy, simulation: Simulation | None = None) -> GateReport:
    """Judge a recipe file. simulation: one of the same model, whose scores go before the card's.

    Raises RecipeError on a recipe that cannot be read, FormatError on a policy or simulation that does not fit.
    """
    check_severities(policy)
    if simulation is not None:
        check_simulation(simulation, card, where="--simulation")
    return judge(gather(read_recipe(recipe), card, policy, simulation))


def accepts(recipe: str, card: Card) -> bool:
    """Whether the text of a recipe passes on a card and vLLM runs it as it is meant.

    Judged under the shipped policy that the card names, or the default where it names another one.
    """
    name = card.verdict.policy if card.verdict.policy in SHIPPED else "default"
    try:
        evidence = gather(parse_recipe(recipe, "recipe.yaml"), card, load_policy(name), None)
    except (FormatError, RecipeError):
        return False
    report = judge(evidence)
    return report.outcome == "pass" and not any(finding.code in _OF_ENGINES for finding in report.findings)


def judge(evidence: Evidence) -> GateReport:
    """Apply every rule and draw the conclusion."""
    severities = evidence.policy.gate.severities
    applied = [rule for rule in RULES.values() if severities.get(rule.code) != "off"]
    findings = [_finding(rule, hit, evidence) for rule, hit in apply(applied, evidence)]
    findings.sort(key=lambda finding: (SEVERITY_ORDER[finding.severity], finding.code))
    outcome = _outcome(findings)
    return GateReport(
        quantaudit_version=__version__,
        recipe=visible(evidence.recipe.path),
        digest=evidence.resolution.digest,
        model=visible(evidence.card.model.name),
        fingerprint=evidence.card.model.fingerprint,
        seal=evidence.seal,
        policy=visible(evidence.policy.name),
        policy_digest=evidence.policy.digest,
        extends=list(evidence.policy.extends),
        limits=Limits(
            kl=list(evidence.policy.kl.both),
            top1=list(evidence.policy.top1.both),
            level=evidence.policy.evaluation.level,
        ),
        outcome=outcome,
        headline=_headline(outcome, findings, evidence),
        linears=evidence.linears,
        quantized=evidence.quantized,
        score=evidence.score,
        findings=findings,
        rules={rule.code: rule.title for rule in applied},
    )


def check_severities(policy: Policy) -> None:
    """Raises FormatError where a policy speaks of a rule that does not exist, or is not the gate's."""
    others = sorted(set(policy.gate.severities) - set(RULES))
    unknown = [code for code in others if code not in all_rules()]
    if unknown:
        raise FormatError(
            f"no such rule: {', '.join(unknown)}", where=f"policy {policy.name}", hint="rules are in docs/rules.md"
        )
    if others:
        raise FormatError(
            f"{', '.join(others)} {'is a rule' if len(others) == 1 else 'are rules'} of a card or an artifact, whose "
            "severity no policy changes",
            where=f"policy {policy.name}",
            hint="give severities of QA4xx and QA5xx; what a card's finding does to the gate is QA515",
        )


def _finding(rule: Rule, hit: Hit, evidence: Evidence) -> GateFinding:
    rules = evidence.policy.gate
    severity = rules.severities.get(rule.code) or hit.severity or rule.severity
    if severity == "off":
        raise ValueError("a rule that is off is not applied")
    keys = hit.keys if hit.keys is not None or hit.module is None else evidence.place(hit.module)
    return GateFinding(
        code=rule.code,
        title=rule.title,
        severity=severity,
        fails=severity == "error" or (severity == "warning" and rules.fail_on == "warning"),
        module=None if hit.module is None else visible(hit.module),
        line=evidence.recipe.positions.line(keys) if keys is not None else None,
        message=visible(hit.message),
        value=hit.value,
        threshold=hit.threshold,
        reason=hit.why or rule.why,
        remedy=visible(hit.remedy or rule.remedy),
    )


def _outcome(findings: Sequence[GateFinding]) -> Outcome:
    """A known failure is a failure, whatever else is unknown; what is unknown never passes."""
    if any(finding.fails for finding in findings):
        return "fail"
    return "inconclusive" if any(finding.severity == "inconclusive" for finding in findings) else "pass"


def _headline(outcome: Outcome, findings: Sequence[GateFinding], evidence: Evidence) -> str:
    deciding = [
        finding for finding in findings if (finding.fails if outcome == "fail" else finding.severity == "inconclusive")
    ]
    if outcome == "pass":
        return f"{_quantized(evidence)}: within the policy `{visible(evidence.policy.name)}`."
    return " ".join(_sentences(deciding))


def _sentences(findings: Sequence[GateFinding]) -> Iterator[str]:
    for finding in findings[:2]:
        yield f"{capital(finding.message)}."
    if len(findings) > 2:
        yield f"{len(findings) - 2} more findings of this weight."


def _quantized(evidence: Evidence) -> str:
    score, limits = evidence.score, evidence.policy.kl.both
    kl = score.kl
    interval = (
        ""
        if score.kl_low is None or score.kl_high is None
        else (f" ({significant(score.kl_low, *limits)} to {significant(score.kl_high, *limits)})")
    )
    return f"{len(evidence.schemes):,} of {evidence.linears:,} Linears quantized" + (
        "" if kl is None else f", KL {significant(kl, *limits)}{interval} nats per token, {score.source}"
    )
