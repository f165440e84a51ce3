"""What SmoothQuant reaches: llm-compressor's own mappings, resolved by itself on the model's modules."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from torch import nn

from quantaudit.common.logs import stdout_to_stderr
from quantaudit.recipe.parse import ParsedModifier, ParsedRecipe
from quantaudit.recipe.resolved import SmoothQuant
from quantaudit.recipe.yaml_positions import Keys

LATE = "SmoothQuant comes after a modifier that quantizes, so that scales fit no longer, which is not simulated"
MISFIT = "SmoothQuant's mappings do not fit this model, which is not simulated"
ARGUMENTS = ("num_calibration_steps", "calibration_function", "start", "end")
"""Of SmoothQuantModifier, those that change when or on what it is calibrated, or that `oneshot` refuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothing:
    """One SmoothQuant modifier. spec: what it smooths, as far as that is known; problem: why it cannot run, or None.

    unmatched: mappings that hit nothing, as text. unsimulated: why it is not simulated, or None.
    """

    modifier: int
    keys: Keys
    spec: SmoothQuant
    unmatched: tuple[str, ...]
    problem: str | None
    unsimulated: str | None

    @property
    def balance_layers(self) -> frozenset[str]:
        """Linears whose input it smooths."""
        return self.spec.balance_layers

    @property
    def simulated(self) -> bool:
        """Whether it does anything, and all that it does is simulated."""
        return self.unsimulated is None and bool(self.spec.mappings)

    @property
    def identity(self) -> str:
        """What it does, for telling recipes apart: equal where it is written differently and does the same."""
        return identity(self.spec)


def smoothings(recipe: ParsedRecipe, model: nn.Module, claimed: Mapping[str, int]) -> Iterator[Smoothing]:
    """Every SmoothQuant modifier of a recipe. `model` must be of a class named as the architecture.

    claimed: by module path, index of the first modifier that quantizes it.
    """
    with stdout_to_stderr():
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    for index, parsed in enumerate(recipe.modifiers):
        if isinstance(parsed.modifier, SmoothQuantModifier):
            earlier = frozenset(name for name, first in claimed.items() if first < index)
            yield _smoothing(index, parsed, model, earlier)


def identity(spec: SmoothQuant) -> str:
    """What a step does, as text."""
    strength = spec.strength if spec.algorithm == "smoothquant" else None
    return json.dumps(["smoothing", spec.algorithm, strength, spec.mappings])


def inferred(model: nn.Module) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The mappings that llm-compressor has for this architecture: norm, and the Linears that are said to read it.

    Empty where they do not fit the model.
    """
    with stdout_to_stderr():
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    parsed = ParsedModifier(name="SmoothQuantModifier", keys=(), modifier=SmoothQuantModifier())
    smoothing = _smoothing(0, parsed, model, frozenset())
    return () if smoothing.problem is not None else smoothing.spec.mappings


def _smoothing(index: int, parsed: ParsedModifier, model: nn.Module, earlier: AbstractSet[str]) -> Smoothing:
    """The modifier resolved on the model. earlier: modules that were quantized before it comes."""
    names = {module: name for name, module in model.named_modules()}
    mappings: list[tuple[str, tuple[str, ...]]] = []
    unmatched: list[str] = []
    problem = None
    try:
        for mapping in parsed.modifier._infer_mappings_from_model(model):
            # One mapping at a time, on a copy: resolving is what `oneshot` does first, and it fails as a whole.
            one = parsed.modifier.model_copy(update={"mappings": [mapping], "ignore": parsed.modifier.ignore or []})
            resolved = one._resolve_mappings(model)
            mappings += [(row.smooth_name, tuple(names[layer] for layer in row.balance_layers)) for row in resolved]
            if not resolved:
                balance, smooth = mapping
                unmatched.append(f"{smooth} → {balance}")
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        cause = error.__cause__ or error
        problem = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    modifier = parsed.modifier
    spec = SmoothQuant(algorithm=modifier.algorithm, strength=modifier.smoothing_strength, mappings=tuple(mappings))
    late = bool(earlier) if problem is not None else not spec.changed.isdisjoint(earlier)
    return Smoothing(
        modifier=index,
        keys=parsed.keys,
        spec=spec,
        unmatched=tuple(unmatched),
        problem=problem,
        unsimulated=_unsimulated(modifier, late=late, misfit=problem is not None),
    )


def _unsimulated(modifier: Any, *, late: bool, misfit: bool) -> str | None:
    given = [name for name in ARGUMENTS if getattr(modifier, name, None) not in (None, -1)]
    if given:
        return f"SmoothQuant is given `{given[0]}`, which is not simulated"
    return LATE if late else MISFIT if misfit else None
