"""One modifier's targets and ignores on a model's modules: what each pattern hits, and what it comes to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.utils import is_match, match_targets
from compressed_tensors.utils.match import is_narrow_match
from torch import nn

from quantaudit.common.reading.patterns import PREFIX, slow_pattern
from quantaudit.errors import RecipeError
from quantaudit.recipe.digest import identity
from quantaudit.recipe.parse import ParsedModifier, ParsedRecipe
from quantaudit.recipe.suggest import suggestions
from quantaudit.recipe.yaml_positions import Keys

Field = Literal["targets", "ignore"]
Effect = Literal["full", "nothing", "container", "not quantizable", "not targeted", "overruled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which pattern of a recipe gave a module its scheme. modifier: index; group: key in `config_groups`."""

    modifier: int
    group: str
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """One entry of `targets` or `ignore`, and what it comes to.

    effect: `full`; it matches `nothing`; it matches a `container` of Linears, which is not the Linears; it matches only
    what is `not quantizable` (norms, routers); an ignore matches only what is `not targeted`, or that others keep
    out; a target matches only modules that other targets claim first (`overruled`).
    modules: how many it matches. nearest: patterns or names that do match Linears and look alike.
    """

    modifier: int
    field: Field
    text: str
    effect: Effect
    modules: int
    suggestions: tuple[str, ...]
    keys: Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Modules that several targets of one kind match with different schemes; `chosen` is the one that counts.

    Exact names go before regular expressions, these before classes; within a kind the alphabet decides, not the order
    in the recipe.
    """

    modifier: int
    chosen: str
    others: tuple[str, ...]
    modules: tuple[str, ...]


def check_patterns(recipe: ParsedRecipe, names: Iterable[str]) -> None:
    """Raises RecipeError, with the line, on a regular expression of any modifier that takes too long with these names.

    Before anything matches it: neither compressed-tensors nor llm-compressor limits its time.
    """
    texts = {place.scalar: keys for keys, place in recipe.positions.places.items() if place.scalar is not None}
    slow = slow_pattern(texts, names)
    if slow is not None:
        raise RecipeError(
            str(slow),
            where=recipe.where(texts[f"{PREFIX}{slow.text}"]),
            hint="write it without a repetition inside a repetition, such as `re:.*down_proj`",
        )


class Matching:
    """One modifier on the modules. origins: by path, of every Linear and Embedding that it gives a scheme to."""

    def __init__(
        self,
        recipe: ParsedRecipe,
        index: int,
        parsed: ParsedModifier,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
    ) -> None:
        config = parsed.modifier.resolved_config
        self._model = model
        self._index, self._modules = index, modules
        self.schemes: dict[str, QuantizationScheme] = {}
        groups: dict[str, str] = {}
        for group, scheme in config.config_groups.items():
            for target in scheme.targets:
                # As compressed_tensors has it: of two groups with the same target, the last wins.
                self.schemes[target], groups[target] = scheme, group
        self._identities = {target: identity(scheme) for target, scheme in self.schemes.items()}
        self._ignore: list[str] = list(dict.fromkeys(config.ignore or []))
        patterns = [*self.schemes, *self._ignore]
        self._places = {text: recipe.positions.find(parsed.keys, text) for text in patterns}
        self._hits = {text: self._matched(text, recipe) for text in patterns}
        ignored = set().union(*(self._hits[text] for text in self._ignore))
        targeted = set().union(*(self._hits[text] for text in self.schemes))
        self._targeted = {name for name in targeted if quantizable(modules[name])}
        self.origins: dict[str, Origin] = {}
        self._rivals: dict[tuple[str, ...], list[str]] = {}
        for name in modules:
            if name in self._targeted and name not in ignored:
                ranked = match_targets(name, modules[name], self.schemes)
                self.origins[name] = Origin(modifier=index, group=groups[ranked[0]], target=ranked[0])
                self._note_rivals(name, ranked)

    def overlaps(self) -> Iterator[Overlap]:
        """Targets between which only the alphabet decides."""
        for (chosen, *others), names in self._rivals.items():
            yield Overlap(modifier=self._index, chosen=chosen, others=tuple(others), modules=tuple(names))

    def without_effect(self) -> Iterator[Pattern]:
        """Targets and ignores that change nothing, in the order of the recipe."""
        claimed = {origin.target for origin in self.origins.values()}
        for text, hits in self._hits.items():
            field: Field = "targets" if text in self.schemes else "ignore"
            effect = self._reach(hits)
            if effect == "container" and field == "targets" and self._attends(text):
                continue
            if effect == "full" and field == "ignore" and not hits & self._targeted:
                effect = "not targeted"
            # What lies in the container may be kept out by name all the same: then the entry repeats that.
            if effect == "container" and field == "ignore" and not self._quantized_below(hits):
                effect = "not targeted"
            # A target whose every module is ignored is not overruled by another target.
            if effect == "full" and field == "targets" and text not in claimed and hits & self.origins.keys():
                effect = "overruled"
            if effect != "full":
                near = suggestions(text, self._modules) if effect in ("nothing", "container") else ()
                yield Pattern(
                    modifier=self._index,
                    field=field,
                    text=text,
                    effect=effect,
                    modules=len(hits),
                    suggestions=near,
                    keys=self._places[text],
                )

    def _quantized_below(self, hits: set[str]) -> bool:
        """Whether anything inside these modules is quantized."""
        return any(name.startswith(f"{above}.") for above in hits for name in self.origins)

    def _attends(self, text: str) -> bool:
        """Whether a target quantizes the queries, keys and values of attention modules."""
        scheme = self.schemes[text]
        return scheme.input_activations is not None and any(
            attends(self._model, name, self._modules[name], [text]) for name in self._hits[text]
        )

    def _reach(self, hits: set[str]) -> Effect:
        if not hits:
            return "nothing"
        if any(quantizable(self._modules[name]) for name in hits):
            return "full"
        inside = any(quantizable(child) for name in hits for child in self._modules[name].modules())
        return "container" if inside else "not quantizable"

    def _matched(self, text: str, recipe: ParsedRecipe) -> set[str]:
        try:
            return {name for name, module in self._modules.items() if is_match(name, module, text)}
        except (re.error, RecursionError, OverflowError) as error:
            raise RecipeError(
                f"`{text}` is no regular expression: {error}",
                where=recipe.where(self._places[text]),
                hint="after `re:` comes a Python regular expression, such as `re:.*down_proj`; * alone repeats nothing",
            ) from error

    def _note_rivals(self, name: str, ranked: list[str]) -> None:
        first = ranked[0]
        rivals = [
            target
            for target in ranked[1:]
            if _rank(target, name) == _rank(first, name) and self._identities[target] != self._identities[first]
        ]
        if rivals:
            self._rivals.setdefault((first, *rivals), []).append(name)


def quantizable(module: nn.Module) -> bool:
    """What apply_quantization_config gives a scheme to; it passes over all else, such as transformers' Conv1D."""
    return isinstance(module, nn.Linear | nn.Embedding)


def attends(model: nn.Module, name: str, module: nn.Module, targets: Sequence[str]) -> bool:
    """Whether targets that match a module mean its queries, keys and values: it is attention, and they match it alone.

    compressed_tensors' own test, but for the signature of `forward`, which a card does not hold.
    """
    holds = any(hasattr(module, part) for part in ("k_proj", "v_proj", "qkv_proj", "kv_b_proj"))
    named = "attention" in type(module).__name__.lower()
    return named and holds and bool(is_narrow_match(model, targets, name, module))


def _rank(target: str, name: str) -> int:
    return 1 if target.startswith("re:") else 0 if target == name else 2
