"""What a policy may hold: every threshold, each with its reason, each within its domain."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from quantaudit.common.outcome import GateSeverity
from quantaudit.provenance import Row

_POWER_OF_TEN = re.compile(r"[+-]?\d{1,20}(\.\d{0,40})?[eE][+-]?\d{1,4}")


def _plain(value: Any) -> Any:
    """A number as YAML means it: 1e-3, which has no point, is a word to YAML 1.1. Truth values are no numbers."""
    if isinstance(value, str) and _POWER_OF_TEN.fullmatch(value):
        value = float(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**300:
        raise ValueError("Input should be a number that a double can hold")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("Input should be a finite number; null says that there is no limit")
    return value


def _null_is(stand_in: float) -> WrapValidator:
    """null is no limit: a number that nothing passes stands for it."""

    def read(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        return stand_in if value is None else handler(value)

    return WrapValidator(read)


Finite = Annotated[float, Field(strict=True, ge=0), BeforeValidator(_plain)]
Upper = Annotated[Finite, _null_is(math.inf)]
"""A limit that a number may not exceed; null is none."""
Lower = Annotated[Finite, _null_is(0.0)]
"""A limit that a number may not fall below; null is none."""
LowerShare = Annotated[Annotated[float, Field(strict=True, ge=0, le=1), BeforeValidator(_plain)], _null_is(0.0)]
UpperShare = Annotated[Annotated[float, Field(strict=True, ge=0, le=1), BeforeValidator(_plain)], _null_is(math.inf)]
Reason = Annotated[str, Field(min_length=1)]


class Ceiling(Row):
    """READY up to `ready`, READY WITH CARE up to `care`, NOT READY above."""

    ready: Upper
    care: Upper
    reason: Reason

    @property
    def both(self) -> tuple[float, float]:
        """The two limits."""
        return self.ready, self.care

    @model_validator(mode="after")
    def _ordered(self) -> Ceiling:
        if self.ready > self.care:
            raise ValueError("ready must not exceed care")
        return self


class Floor(Row):
    """READY down to `ready`, READY WITH CARE down to `care`, NOT READY below."""

    ready: LowerShare
    care: LowerShare
    reason: Reason

    @property
    def both(self) -> tuple[float, float]:
        """The two limits."""
        return self.ready, self.care

    @model_validator(mode="after")
    def _ordered(self) -> Floor:
        if self.ready < self.care:
            raise ValueError("ready must not lie below care")
        return self


class Warn(Row):
    """A warning above `warning`."""

    warning: Upper
    reason: Reason


class WarnShare(Row):
    """A warning where a share is above `warning`."""

    warning: UpperShare
    reason: Reason


class WarnBelow(Row):
    """A warning below `warning`."""

    warning: Lower
    reason: Reason


class Fail(Row):
    """An error above `error`."""

    error: Upper
    reason: Reason


class WarnFail(Row):
    """A warning above `warning`, an error above `error`."""

    warning: Upper
    error: Upper
    reason: Reason

    @model_validator(mode="after")
    def _ordered(self) -> WarnFail:
        if self.warning > self.error:
            raise ValueError("warning must not exceed error")
        return self


class WarnFailBelow(Row):
    """A warning below `warning`, an error below `error`."""

    warning: Lower
    error: Lower
    reason: Reason

    @model_validator(mode="after")
    def _ordered(self) -> WarnFailBelow:
        if self.warning < self.error:
            raise ValueError("warning must not lie below error")
        return self


class EvidenceRules(Row):
    """What a verdict has to rest on: at least so many tokens and samples, and an interval clear of every limit.

    level: two-sided confidence level of the intervals of KL and top-1.
    """

    tokens: int = Field(ge=2, strict=True)
    samples: int = Field(ge=2, strict=True)
    level: float = Field(ge=0.5, le=0.9999, strict=True)
    reason: Reason

    @model_validator(mode="before")
    @classmethod
    def _of_now(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "errors" in given:
            raise ValueError("`errors` gave way to `level` and `samples`: give level: 0.95 and samples: 2 instead")
        return given


class Estimate(Row):
    """What an estimated KL is good for. margin: the factor by which it may lie to either side, on cards with too few
    simulated recipes to show how far estimates miss.
    """

    accept: bool = Field(strict=True)
    margin: Annotated[float, Field(strict=True, ge=1), BeforeValidator(_plain)]
    reason: Reason


class GateRules(Row):
    """Which findings of `quantaudit gate` fail it. severities: by rule, where it differs from the rule's own."""

    fail_on: Literal["error", "warning"]
    severities: dict[str, GateSeverity | Literal["off"]]
    estimate: Estimate
    reason: Reason

    @field_validator("severities", mode="before")
    @classmethod
    def _off(cls, given: Any) -> Any:
        if given is None:
            return {}
        # YAML 1.1 reads `off` as false. What is no mapping is refused by its own type.
        return {k: "off" if v is False else v for k, v in given.items()} if isinstance(given, Mapping) else given


class PolicyName(Row):
    """A policy by its name and the digest of all that it says."""

    name: str
    digest: str


def identity_of(*policies: PolicyName) -> str:
    """`drafts (9f2c01d4a7b3), which extends default (77ab…)`: what outputs name a policy by, nearest first."""
    return ", which extends ".join(f"{one.name} ({one.digest[:12]})" if one.digest else one.name for one in policies)


class Policy(Row):
    """Every threshold, each with its reason."""

    name: str = Field(min_length=1, max_length=200)
    kl: Ceiling
    top1: Floor
    evaluation: EvidenceRules
    gate: GateRules
    damage: Warn
    zeroed_fraction: WarnShare
    range_coverage: WarnBelow
    range_excess: WarnFail
    fp16_headroom: WarnFailBelow
    calibration_excess: Warn
    perplexity_over_unigram: Fail
    _extends: tuple[PolicyName, ...] = PrivateAttr(default=())

    @property
    def digest(self) -> str:
        """SHA-256 of the sections with their reasons, whichever file says them."""
        return hashlib.sha256(self.model_dump_json(exclude={"name"}).encode()).hexdigest()

    @property
    def extends(self) -> tuple[PolicyName, ...]:
        """The policies that it builds on, nearest first."""
        return self._extends

    def on(self, base: Policy) -> Policy:
        """The same, which is said to build on another."""
        policy = self.model_copy()
        policy._extends = (PolicyName(name=base.name, digest=base.digest), *base.extends)
        return policy

    @property
    def identity(self) -> str:
        """The policy, and those that it builds on, each with the first digits of its digest."""
        return identity_of(PolicyName(name=self.name, digest=self.digest), *self.extends)
