"""What a recipe does that the simulation does not: named one by one, so that no number passes for the whole effect."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig
from compressed_tensors.utils import is_match
from torch import nn

from quantaudit.recipe.matching import attends
from quantaudit.recipe.modifiers.smoothquant import Smoothing
from quantaudit.recipe.parse import ParsedModifier
from quantaudit.recipe.yaml_positions import Keys

REASONS = {
    "GPTQModifier": "GPTQ chooses rounded weights by calibration; only rounding to nearest is simulated",
    "AutoRoundModifier": "AutoRound learns how weights are rounded; only rounding to nearest is simulated",
    "AWQModifier": "AWQ rescales weights by calibration before they are rounded, which is not simulated",
    "SpinQuantModifier": "SpinQuant rotates weights and activations: what it quantizes are not the peaks measured here",
    "QuIPModifier": "QuIP rotates weights and activations: what it quantizes are not the peaks measured here",
}
SIMULATED = {"QuantizationModifier"}
_RESOLVED = {
    "config_groups",
    "targets",
    "ignore",
    "scheme",
    "kv_cache_scheme",
    "weight_observer",
    "input_observer",
    "output_observer",
    "observer",
    "bypass_divisibility_checks",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsimulated:
    """One thing that a modifier does beyond rounding the weights and inputs of Linears.

    identity: the modifier with its arguments, for telling recipes apart.
    """

    modifier: str
    reason: str
    keys: Keys
    identity: str


def unsimulated(parsed: ParsedModifier, model: nn.Module, smoothing: Smoothing | None) -> Iterator[Unsimulated]:
    """Everything about one modifier that a simulation leaves out. smoothing: what the modifier smooths, if it does."""
    reason = _reason(parsed) if smoothing is None else smoothing.unsimulated
    if reason is not None:
        yield _row(parsed, reason, _arguments(parsed.modifier), ())
    config = getattr(parsed.modifier, "resolved_config", None)
    if config is None:
        return
    if config.kv_cache_scheme is not None:
        reason = "the key-value cache is quantized, which is not simulated"
        yield _row(parsed, reason, _dump(config.kv_cache_scheme), ("kv_cache_scheme",))
    for name, scheme in config.config_groups.items():
        below = ("config_groups", name)
        if scheme.output_activations is not None:
            reason = "outputs of Linears are quantized, which is not simulated"
            yield _row(parsed, reason, _dump(scheme.output_activations), below)
        matched = _matched(model, scheme.targets, config.ignore or [])
        if scheme.input_activations is not None and any(
            attends(model, path, module, scheme.targets) for path, module in matched
        ):
            reason = "queries, keys and values of attention are quantized, which is not simulated"
            yield _row(parsed, reason, _dump(scheme.input_activations), below)
        if scheme.weights is not None and any(isinstance(module, nn.Embedding) for _, module in matched):
            reason = "weights of an embedding are quantized, which is not simulated"
            yield _row(parsed, reason, _dump(scheme.weights), below)


def _reason(parsed: ParsedModifier) -> str | None:
    if parsed.name in SIMULATED:
        return None
    return REASONS.get(parsed.name, "what this modifier does to the model is not simulated")


def _row(parsed: ParsedModifier, reason: str, what: Any, below: tuple[str, ...]) -> Unsimulated:
    text = json.dumps([parsed.name, *below[:1], what], sort_keys=True, default=str)
    return Unsimulated(modifier=parsed.name, reason=reason, keys=(*parsed.keys, *below), identity=text)


def _arguments(modifier: Any) -> Any:
    """What the recipe sets, but for what the resolved schemes tell already."""
    given = modifier.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    if isinstance(getattr(modifier, "resolved_config", None), QuantizationConfig):
        given = {key: value for key, value in given.items() if key not in _RESOLVED}
    return {key: value for key, value in given.items() if not key.endswith("_") and key not in ("group", "index")}


def _dump(args: QuantizationArgs) -> Any:
    return args.model_dump(mode="json", exclude_none=True)


def _matched(model: nn.Module, targets: Sequence[str], ignore: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """Matched modules that are no Linears, which are the many."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if name and not isinstance(module, nn.Linear) and is_match(name, module, targets, ignore)
    ]
