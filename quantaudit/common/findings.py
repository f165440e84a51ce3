"""The registry of rules: every code with what it means, why it matters and what to do, of all stages. Imports no torch.

A code says by its hundreds which stage a rule belongs to: QA1xx to QA3xx are findings of a card (measurement, loading,
simulation), QA4xx and QA5xx of a recipe, QA6xx of a quantized artifact, QA7xx of what is compared.
`gate --explain`, docs/rules.md, SARIF's table of rules and the texts of findings all come from here.

A rule is a pure function from the evidence of its stage to hits, registered by `@rule(...)`. Where several functions
report under one code, or one under several, as the readers of an artifact do, the code is registered by `declare(...)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from quantaudit.common.outcome import GateSeverity

Stage = Literal["card", "recipe", "artifact", "comparison"]
_STAGES: Mapping[str, Stage] = {
    "QA1": "card",
    "QA2": "card",
    "QA3": "card",
    "QA4": "recipe",
    "QA5": "recipe",
    "QA6": "artifact",
    "QA7": "comparison",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One thing that a rule found.

    module: path of a module, or name of a fused group. keys: place in the recipe's YAML. value, threshold: what was
    measured, and the limit that it passed. severity, why, remedy: where they are not the rule's.
    """

    message: str
    module: str | None = None
    keys: tuple[str | int, ...] | None = None
    value: float | None = None
    threshold: float | None = None
    severity: GateSeverity | None = None
    why: str | None = None
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What is looked for, how grave it is, why it matters, and what to do.

    check: from the stage's evidence to hits; None where a code was declared and is reported by several functions.
    """

    code: str
    title: str
    severity: GateSeverity
    why: str
    remedy: str
    check: Callable[[Any], Iterable[Hit]] | None = None

    @property
    def stage(self) -> Stage:
        """What the rule is about."""
        return _STAGES[self.code[:3]]

    @property
    def description(self) -> str:
        """The check's documentation as one paragraph; empty where there is no check."""
        return " ".join((inspect.getdoc(self.check) or "").split()) if self.check is not None else ""


_RULES: dict[str, Rule] = {}

Check = TypeVar("Check", bound=Callable[[Any], Iterable[Hit]])


def rule(code: str, title: str, *, severity: GateSeverity, why: str, remedy: str) -> Callable[[Check], Check]:
    """Register a function as the rule of a code. Raises ValueError where the code is taken or of no stage."""

    def register(check: Check) -> Check:
        _add(Rule(code=code, title=title, severity=severity, why=why, remedy=remedy, check=check))
        return check

    return register


def declare(code: str, title: str, *, severity: GateSeverity, why: str, remedy: str) -> Rule:
    """Register a code that functions report by its name. Raises ValueError where it is taken or of no stage."""
    return _add(Rule(code=code, title=title, severity=severity, why=why, remedy=remedy))


def _add(new: Rule) -> Rule:
    if new.code in _RULES:
        raise ValueError(f"{new.code} is taken by {_RULES[new.code].title!r}")
    if new.code[:3] not in _STAGES:
        raise ValueError(f"{new.code} is of no stage: codes begin with one of {', '.join(_STAGES)}")
    _RULES[new.code] = new
    return new


def find_rule(code: str) -> Rule:
    """The rule of a code. Raises KeyError where none is registered, or the module that registers it is not imported."""
    return _RULES[code]


def rules_of(stage: Stage) -> dict[str, Rule]:
    """Rules of one stage that are registered by now, by code, in the order of codes."""
    return {code: _RULES[code] for code in sorted(_RULES) if _RULES[code].stage == stage}


def apply(rules: Iterable[Rule], evidence: Any) -> Iterator[tuple[Rule, Hit]]:
    """Every hit of every rule that has a check, with its rule, in the order of the rules."""
    for one in rules:
        if one.check is not None:
            for hit in one.check(evidence):
                yield one, hit
