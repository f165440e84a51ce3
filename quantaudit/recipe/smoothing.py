"""What SmoothQuant reaches: llm-compressor's own mappings, resolved by itself on the model's modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from quantaudit.recipe.lines import Keys
from quantaudit.recipe.source import ParsedModifier, ParsedRecipe, toolkit_quiet


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothing:
    """One SmoothQuant modifier. balanced: Linears whose input it smooths; problem: why it cannot run, or None.

    unmatched: mappings that hit nothing, as text.
    """

    modifier: int
    keys: Keys
    balanced: frozenset[str]
    unmatched: tuple[str, ...]
    problem: str | None


def smoothings(recipe: ParsedRecipe, model: nn.Module) -> Iterator[Smoothing]:
    """Every SmoothQuant modifier of a recipe. `model` must be of a class named as the architecture."""
    with toolkit_quiet():
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    for index, parsed in enumerate(recipe.modifiers):
        if isinstance(parsed.modifier, SmoothQuantModifier):
            yield _smoothing(index, parsed, model)


def _smoothing(index: int, parsed: ParsedModifier, model: nn.Module) -> Smoothing:
    names = {module: name for name, module in model.named_modules()}
    balanced: set[str] = set()
    unmatched: list[str] = []
    problem = None
    try:
        mappings = parsed.modifier._infer_mappings_from_model(model)
        for mapping in mappings:
            # One mapping at a time, on a copy: resolving is what `oneshot` does first, and it fails as a whole.
            one = parsed.modifier.model_copy(update={"mappings": [mapping], "ignore": parsed.modifier.ignore or []})
            resolved = one._resolve_mappings(model)
            balanced |= {names[layer] for row in resolved for layer in row.balance_layers}
            if not resolved:
                balance, smooth = mapping
                unmatched.append(f"{smooth} → {balance}")
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        cause = error.__cause__ or error
        problem = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    return Smoothing(
        modifier=index, keys=parsed.keys, balanced=frozenset(balanced), unmatched=tuple(unmatched), problem=problem
    )
