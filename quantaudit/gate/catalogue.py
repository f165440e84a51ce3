"""Every code in words, for `gate --explain`: rules of a card, a recipe, an artifact, a comparison. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from quantaudit.card.judge import findings  # noqa: F401  its rules register themselves, as do those below
from quantaudit.common.findings import Rule, Stage, rules_of
from quantaudit.compare import caveats  # noqa: F401
from quantaudit.compare.logits import caveats as of_checkpoints  # noqa: F401
from quantaudit.conform.rules import catalogue  # noqa: F401
from quantaudit.errors import UsageError
from quantaudit.gate import rules  # noqa: F401

SOURCES: Mapping[Stage, str] = {
    "card": "A finding of the card, made by `quantaudit report`; its entry there has the numbers.",
    "artifact": "A finding about a quantized artifact, by `quantaudit conform` or `verify`.",
    "comparison": "What has to be said before any number, by `quantaudit compare`.",
}
"""Where findings of a stage appear, if they are not the gate's."""


def all_rules() -> dict[str, Rule]:
    """Every rule of every stage, by code, in the order of codes."""
    return {**rules_of("card"), **rules_of("recipe"), **rules_of("artifact"), **rules_of("comparison")}


def explain(code: str) -> str:
    """One code in words. Raises UsageError where there is no such code."""
    by_code = all_rules()
    if code.upper() not in by_code:
        raise UsageError("no such rule", where=f"--explain {code}", hint=f"one of {', '.join(by_code)}")
    rule = by_code[code.upper()]
    about = rule.description if rule.stage == "recipe" else SOURCES[rule.stage]
    texts = [about, f"Why: {rule.why}", f"What to do: {rule.remedy}"]
    return "\n".join([f"{rule.code}: {rule.title} ({rule.severity})", "", *texts])
