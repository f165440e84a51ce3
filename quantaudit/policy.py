"""Thresholds and verdicts. A policy is data (`recipes/policies/*.yaml`); this file only applies it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from quantaudit.common.outcome import GateSeverity
from quantaudit.common.outputs.claims import check_inputs
from quantaudit.common.reading.regular_files import RECIPE_BYTES, read_text
from quantaudit.common.reading.yaml_document import read_yaml
from quantaudit.common.resources import resource_dir
from quantaudit.common.rounding import limit_number, limit_percentage, percentage, significant
from quantaudit.errors import FormatError
from quantaudit.provenance import Row, explain
from quantaudit.simulate.records import RecipeRow

Status = Literal["READY", "READY WITH CARE", "NOT READY", "INCONCLUSIVE"]


class Ceiling(Row):
    """READY up to `ready`, READY WITH CARE up to `care`, NOT READY above."""

    ready: float
    care: float
    reason: str

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

    ready: float
    care: float
    reason: str

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
    """A warning beyond `warning`."""

    warning: float
    reason: str


class Fail(Row):
    """An error beyond `error`."""

    error: float
    reason: str


class WarnFail(Row):
    """A warning beyond `warning`, an error beyond `error`."""

    warning: float
    error: float
    reason: str


class EvaluationSize(Row):
    """A warning on fewer tokens; a remark on a KL that lies fewer standard errors from a limit."""

    tokens: int = Field(ge=2)
    errors: float = Field(ge=0)
    reason: str


class Estimate(Row):
    """What an estimated KL is good for: it counts as anything between itself over `margin` and times `margin`."""

    accept: bool
    margin: float = Field(ge=1)
    reason: str


class GateRules(Row):
    """Which findings of `quantaudit gate` fail it. severities: by rule, where it differs from the rule's own."""

    fail_on: Literal["error", "warning"]
    severities: dict[str, GateSeverity | Literal["off"]]
    estimate: Estimate
    reason: str

    @field_validator("severities", mode="before")
    @classmethod
    def _off(cls, given: Any) -> Any:
        # YAML 1.1 reads `off` as false.
        return {key: "off" if value is False else value for key, value in given.items()} if given else {}


class Policy(Row):
    """Every threshold, each with its reason."""

    name: str
    kl: Ceiling
    top1: Floor
    evaluation: EvaluationSize
    gate: GateRules
    damage: Warn
    zeroed_fraction: Warn
    range_coverage: Warn
    range_excess: WarnFail
    fp16_headroom: WarnFail
    calibration_excess: Warn
    perplexity_over_unigram: Fail


def load_policy(spec: str = "default") -> Policy:
    """A shipped policy by name, or a YAML file. Raises FormatError with every mistake in it.

    `extends: default` takes the sections that a policy does not give from another one, next to it or shipped.
    """
    path = _policy_path(spec)
    try:
        return Policy.model_validate(_sections(path, ()))
    except ValidationError as error:
        raise FormatError(
            f"not a policy: {explain(error)}", where=str(path), hint="start from recipes/policies/default.yaml"
        ) from error


def judge(
    policy: Policy, recipe: RecipeRow | None, obstacles: list[str], *, broken: bool = False
) -> tuple[Status, str]:
    """Status of one scheme and the reason in words. obstacles: why nothing can be concluded, if anything.

    broken: whether the unquantized model has non-finite activations, be it in a few samples only.
    The worse of KL and top-1 decides. What is non-finite is NOT READY even where much was not measured.
    """
    if broken:
        return "NOT READY", "The model itself produces NaN or infinite values before anything is quantized."
    if recipe is not None and recipe.nonfinite and recipe.kl is None:
        return "NOT READY", "The model produces NaN or infinite values under this scheme."
    if obstacles:
        return "INCONCLUSIVE", " ".join(obstacles)
    if recipe is not None and recipe.nonfinite:
        return "INCONCLUSIVE", "Some of its static ranges are missing: those tensors were simulated unquantized."
    if recipe is None or recipe.kl is None or recipe.top1 is None:
        return "INCONCLUSIVE", "The whole model was not simulated under this scheme."
    by_kl: Status = (
        "READY" if recipe.kl <= policy.kl.ready else "READY WITH CARE" if recipe.kl <= policy.kl.care else "NOT READY"
    )
    by_top1: Status = (
        "READY"
        if recipe.top1 >= policy.top1.ready
        else "READY WITH CARE"
        if recipe.top1 >= policy.top1.care
        else "NOT READY"
    )
    order: list[Status] = ["READY", "READY WITH CARE", "NOT READY"]
    status = max(by_kl, by_top1, key=order.index)
    return status, _reason(policy, recipe, status, by_kl, by_top1)


def passes(policy: Policy, recipe: RecipeRow) -> bool:
    """Whether a simulated recipe is READY, or READY WITH CARE, by its own unrounded numbers."""
    status, _ = judge(policy, recipe, [])
    return status in ("READY", "READY WITH CARE")


def _reason(policy: Policy, recipe: RecipeRow, status: Status, by_kl: Status, by_top1: Status) -> str:
    kl, top1 = scores(policy, recipe)
    scored = f"KL {kl} nats per token and {top1} of top-1 tokens kept"
    if status == "READY":
        limits = f"{limit_number(policy.kl.ready)} and {limit_percentage(policy.top1.ready)}"
        return f"{scored}: within the limits of {limits}."
    side = "care" if status == "NOT READY" else "ready"
    broken = []
    if by_kl == status:
        broken.append(f"KL above {limit_number(getattr(policy.kl, side))}")
    if by_top1 == status:
        broken.append(f"top-1 below {limit_percentage(getattr(policy.top1, side))}")
    return f"{scored}: {' and '.join(broken)}."


def scores(policy: Policy, recipe: RecipeRow) -> tuple[str, str]:
    """KL and top-1 of a row in which both are known, rounded but on their own side of every limit of the policy."""
    return (
        significant(recipe.kl or 0.0, *policy.kl.both),
        percentage(recipe.top1 or 0.0, *policy.top1.both, digits=0),
    )


def _policy_path(spec: str, extending: Path | None = None) -> Path:
    if spec.endswith((".yaml", ".yml")):
        return Path(spec) if extending is None else extending.parent / spec
    return resource_dir("recipes") / "policies" / f"{spec}.yaml"


def _sections(path: Path, extending: tuple[Path, ...]) -> Any:
    """The sections of a policy file, those of the policy that it extends filled in."""
    check_inputs({"the policy": path})
    try:
        text = read_text(path, RECIPE_BYTES)
    except (OSError, ValueError) as error:
        shipped = ", ".join(f"`{file.stem}`" for file in sorted((resource_dir("recipes") / "policies").glob("*.yaml")))
        problem = "no such policy" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise FormatError(problem, where=str(path), hint=f"{shipped}, or a .yaml file") from error
    data = read_yaml(text, str(path), FormatError).data
    if not isinstance(data, dict) or "extends" not in data:
        return data
    if path in extending:
        raise FormatError("extends itself", where=str(path), hint="start from recipes/policies/default.yaml")
    base = _sections(_policy_path(str(data.pop("extends")), path), (*extending, path))
    return {**base, **data} if isinstance(base, dict) else base
