"""What AWQ reaches: llm-compressor's own mappings, resolved by itself on a model and the recipe's schemes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from compressed_tensors.quantization import QuantizationScheme
from torch import nn

from quantaudit.common.logs import stdout_to_stderr
from quantaudit.recipe.parse import ParsedModifier, ParsedRecipe
from quantaudit.recipe.yaml_positions import Keys


@dataclass(frozen=True, slots=True, kw_only=True)
class AwqReach:
    """One AWQModifier. mappings: what it divides, and the modules that make up for it, where any is quantized.

    problem: why `oneshot` fails on it, in llm-compressor's words, or None.
    """

    modifier: int
    keys: Keys
    mappings: tuple[tuple[str, tuple[str, ...]], ...]
    problem: str | None

    @property
    def changed(self) -> frozenset[str]:
        """Modules whose weights it rescales."""
        return frozenset(name for smooth, balance_layers in self.mappings for name in (smooth, *balance_layers))


def awq_reaches(
    recipe: ParsedRecipe, model: nn.Module, schemes: Mapping[str, QuantizationScheme]
) -> Iterator[AwqReach]:
    """Every AWQ modifier of a recipe. schemes: by module path, of all that the whole recipe quantizes."""
    for index, parsed in enumerate(recipe.modifiers):
        if parsed.name == "AWQModifier":
            yield _reach(index, parsed, model, schemes)


def _reach(index: int, parsed: ParsedModifier, model: nn.Module, schemes: Mapping[str, QuantizationScheme]) -> AwqReach:
    with stdout_to_stderr():
        from llmcompressor.modifiers.transform.awq.dynamic_mappings import get_layer_mappings_from_model

    problem = None
    resolved: list[tuple[str, tuple[str, ...]]] = []
    try:
        mappings = parsed.modifier.mappings
        if mappings is None:
            mappings = get_layer_mappings_from_model(model)
        # On a copy: resolving is what `oneshot` does first.
        modifier = parsed.modifier.model_copy(update={"mappings": mappings})
        with _attached(model, schemes):
            modifier._set_resolved_mappings(model)
        resolved = [(row.smooth_name, tuple(row.balance_names)) for row in modifier._resolved_mappings]
        problem = _unfit(modifier.duo_scaling, resolved, schemes)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        problem = lines[0] if lines else type(error).__name__
    return AwqReach(modifier=index, keys=parsed.keys, mappings=tuple(resolved), problem=problem)


def _unfit(
    duo_scaling: Any, mappings: list[tuple[str, tuple[str, ...]]], schemes: Mapping[str, QuantizationScheme]
) -> str | None:
    """What llm-compressor checks once it calibrates: its default scaling needs weights with more than one scale."""
    if duo_scaling is False:
        return None
    for name in (name for _, balance_layers in mappings for name in balance_layers if name in schemes):
        weights = schemes[name].weights
        if weights is None:
            return f"`{name}` has a scheme without weights, which AWQ cannot search scales for"
        if weights.strategy == "tensor":
            return f"`{name}` has one scale for its whole weight, for which AWQ needs `duo_scaling: false`"
    return None


@contextmanager
def _attached(model: nn.Module, schemes: Mapping[str, QuantizationScheme]) -> Iterator[None]:
    """Within the context modules carry their schemes, as they do when llm-compressor resolves AWQ's mappings."""
    carried = [
        module
        for name, module in model.named_modules()
        if name in schemes and not hasattr(module, "quantization_scheme")
    ]
    names = {module: name for name, module in model.named_modules()}
    for module in carried:
        module.quantization_scheme = schemes[names[module]]
    try:
        yield
    finally:
        for module in carried:
            del module.quantization_scheme
