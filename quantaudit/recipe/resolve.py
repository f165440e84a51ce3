"""Which modules a recipe quantizes, and how: llm-compressor's own configuration on compressed_tensors' own matchers.

The model may be a live one, one on the meta device, or a skeleton rebuilt from a card (`skeleton_model`); its experts
must have been linearized, as `oneshot` does and as loading does here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.utils import is_match
from torch import nn

from quantaudit.common.logs import stdout_to_stderr
from quantaudit.recipe.digest import quantizes, scheme_digest
from quantaudit.recipe.matching import Matching, Origin, Overlap, Pattern, check_patterns
from quantaudit.recipe.modifiers.awq import AwqReach, awq_reaches
from quantaudit.recipe.modifiers.smoothquant import Smoothing, smoothings
from quantaudit.recipe.parse import ParsedModifier, ParsedRecipe
from quantaudit.recipe.resolved import ResolvedRecipe
from quantaudit.recipe.unsimulated import Unsimulated, unsimulated


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """A recipe on a model.

    schemes: by module path, in the model's order, of every Linear and Embedding that is quantized; origins: the
    patterns that gave them.
    unmatched: targets and ignores without effect. overlaps: targets between which the alphabet decides.
    requantized: by path, index of an earlier modifier that had quantized the module already; emptied: the same of
    modules from which a later modifier, which names no scheme, takes theirs away.
    claimed: by path, index of the first modifier that gave the module a scheme.
    reached: by index of a modifier that rounds weights by calibration (GPTQ), the quantized Linears that it rounds.
    smoothings: its SmoothQuant modifiers; awq: its AWQ modifiers.
    unsimulated: what the recipe does beyond smoothing, and rounding weights and inputs of Linears.
    """

    schemes: dict[str, QuantizationScheme] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    unmatched: tuple[Pattern, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    requantized: dict[str, int] = field(default_factory=dict)
    emptied: dict[str, int] = field(default_factory=dict)
    claimed: dict[str, int] = field(default_factory=dict)
    reached: dict[int, tuple[str, ...]] = field(default_factory=dict)
    smoothings: tuple[Smoothing, ...] = ()
    awq: tuple[AwqReach, ...] = ()
    unsimulated: tuple[Unsimulated, ...] = ()

    @property
    def digest(self) -> str:
        """Identity of what the recipe does; equal for recipes that are written differently and do the same."""
        smooth = [smoothing.identity for smoothing in self.smoothings if smoothing.simulated]
        return scheme_digest(self.schemes, [*smooth, *(change.identity for change in self.unsimulated)])

    @property
    def smoothed(self) -> frozenset[str]:
        """Modules whose weights or inputs are smoothed before they are quantized."""
        return frozenset(path for smoothing in self.smoothings for path in smoothing.spec.changed)

    def as_recipe(self, name: str) -> ResolvedRecipe:
        """What a simulation needs of it."""
        return ResolvedRecipe(
            name=name,
            schemes=self.schemes,
            digest=self.digest,
            smooth=tuple(smoothing.spec for smoothing in self.smoothings if smoothing.simulated),
            unsimulated=tuple(dict.fromkeys(change.reason for change in self.unsimulated)),
        )


def resolve(recipe: ParsedRecipe, model: nn.Module) -> Resolution:
    """Resolve every modifier on the model's modules, later ones over earlier ones, as `oneshot` applies them.

    Raises RecipeError, with the line, on a pattern that is no regular expression, or that takes too long to match.
    """
    with stdout_to_stderr():
        from llmcompressor.modifiers.quantization import QuantizationMixin

    modules = {name: module for name, module in model.named_modules() if name}
    check_patterns(recipe, modules)
    schemes: dict[str, QuantizationScheme] = {}
    origins: dict[str, Origin] = {}
    taken: dict[bool, dict[str, int]] = {True: {}, False: {}}
    claimed: dict[str, int] = {}
    unmatched: list[Pattern] = []
    overlaps: list[Overlap] = []
    changes: list[Unsimulated] = []
    for index, parsed in enumerate(recipe.modifiers):
        if isinstance(parsed.modifier, QuantizationMixin) and takes_part(parsed.modifier):
            matching = Matching(recipe, index, parsed, model, modules)
            for name, origin in matching.origins.items():
                scheme = matching.schemes[origin.target]
                if name in schemes and quantizes(schemes[name]):
                    taken[quantizes(scheme)][name] = origins[name].modifier
                schemes[name], origins[name] = scheme, origin
                if quantizes(scheme):
                    claimed.setdefault(name, index)
            unmatched += matching.without_effect()
            overlaps += matching.overlaps()
    smooth = {smoothing.modifier: smoothing for smoothing in smoothings(recipe, model, claimed)}
    for index, parsed in enumerate(recipe.modifiers):
        changes += unsimulated(parsed, model, smooth.get(index))
    quantized = [name for name in modules if name in schemes and quantizes(schemes[name])]
    final = {name: schemes[name] for name in quantized}
    return Resolution(
        schemes=final,
        origins={name: origins[name] for name in quantized},
        unmatched=tuple(unmatched),
        overlaps=tuple(overlaps),
        requantized=taken[True],
        emptied=taken[False],
        claimed=claimed,
        reached={index: _rounded(parsed, modules, final) for index, parsed in _rounding(recipe)},
        smoothings=tuple(smooth.values()),
        awq=tuple(awq_reaches(recipe, model, final)),
        unsimulated=tuple(changes),
    )


def takes_part(modifier: Any) -> bool:
    """Whether a modifier gives modules a scheme: llm-compressor passes over one that is given no such argument.

    A QuantizationModifier without any is refused by `oneshot`, and is resolved to the nothing that it asks for.
    """
    return type(modifier).__name__ == "QuantizationModifier" or bool(modifier.has_config())


def _rounding(recipe: ParsedRecipe) -> Iterator[tuple[int, ParsedModifier]]:
    return ((index, parsed) for index, parsed in enumerate(recipe.modifiers) if parsed.name == "GPTQModifier")


def _rounded(
    parsed: ParsedModifier, modules: Mapping[str, nn.Module], schemes: Mapping[str, QuantizationScheme]
) -> tuple[str, ...]:
    """Linears that GPTQ rounds: those of its targets that it, or another modifier, gave a scheme with weights."""
    targets, ignore = parsed.modifier.resolved_targets, parsed.modifier.ignore or []
    return tuple(
        name
        for name, scheme in schemes.items()
        if scheme.weights is not None
        and isinstance(modules[name], nn.Linear)
        and is_match(name, modules[name], targets, ignore)
    )
