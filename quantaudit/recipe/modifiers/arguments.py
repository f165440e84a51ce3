"""Arguments that llm-compressor accepts when a modifier is made, and fails at, or forgets, when it is run."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.quant_args import ActivationOrdering

ORDERINGS = (ActivationOrdering.WEIGHT.value, ActivationOrdering.STATIC.value)
"""How GPTQ may order columns; `group` and `dynamic` are gone."""
LEAST_BITS, MOST_BITS = 2, 16
"""A symmetric integer of one bit, or none, has no other value than its sign's; with more than 16, nothing is saved."""
_PARTS = ("weights", "input_activations", "output_activations")
_POSITIVE = ("block_size", "n_grid", "iters", "batch_size", "transform_block_size")
_FRACTIONS = ("smoothing_strength", "sparsity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One argument that cannot be. argument: its key at the modifier; value: its text in the file, to find its line."""

    argument: str
    value: str | None
    reason: str
    hint: str


def refusals(modifier: Any) -> Iterator[Refusal]:
    """Everything about a modifier's own arguments, whatever the model, that `oneshot` fails at or does not mean."""
    for where, args in _arguments(modifier):
        yield from _observer(where, args)
        yield from _bits(where, args)
    yield from _ordering(modifier)
    for name in _POSITIVE:
        value = getattr(modifier, name, None)
        least = 0 if name == "iters" else 1
        if isinstance(value, int) and not isinstance(value, bool) and value < least:
            yield Refusal(argument=name, value=None, reason=f"`{name}` is {value}", hint=f"give {least} or more")
    for name in _FRACTIONS:
        value = getattr(modifier, name, None)
        if isinstance(value, float | int) and not 0 <= value <= 1:
            yield Refusal(argument=name, value=None, reason=f"`{name}` is {value:g}", hint="give a number from 0 to 1")
    dampening = getattr(modifier, "dampening_frac", None)
    if dampening is not None and dampening < 0:
        yield Refusal(
            argument="dampening_frac", value=None, reason=f"`dampening_frac` is {dampening:g}", hint="give 0 or more"
        )


def _arguments(modifier: Any) -> Iterator[tuple[str, QuantizationArgs]]:
    config = getattr(modifier, "resolved_config", None)
    if config is None:
        return
    for group, scheme in config.config_groups.items():
        for part in _PARTS:
            args = getattr(scheme, part)
            if args is not None:
                yield f"{part} of {group}", args
    if config.kv_cache_scheme is not None:
        yield "kv_cache_scheme", config.kv_cache_scheme


def _observer(where: str, args: QuantizationArgs) -> Iterator[Refusal]:
    # What is wholly dynamic has no observer, whatever it is called.
    if args.observer is None or args.dynamic is True:
        return
    # Not above: reading a recipe for its lines should not import torch's world before it must.
    from quantaudit.recipe.modifiers.trial import known_observer, observers

    if not known_observer(args.observer):
        names = sorted(name.replace("-", "_") for name in observers())
        near = difflib.get_close_matches(args.observer.lower(), names, 2)
        yield Refusal(
            argument="observer",
            value=args.observer,
            reason=f"llm-compressor has no observer `{args.observer}` ({where})",
            hint=f"did you mean {' or '.join(near)}?" if near else f"one of {', '.join(names)}",
        )


def _bits(where: str, args: QuantizationArgs) -> Iterator[Refusal]:
    if args.num_bits < LEAST_BITS:
        yield Refusal(
            argument="num_bits",
            value=str(args.num_bits),
            reason=f"`num_bits` is {args.num_bits} ({where}), which leaves nothing of a value",
            hint="give 8, or what the kernels of your engine read",
        )
    elif args.num_bits > MOST_BITS:
        shown = str(args.num_bits) if args.num_bits < 10**6 else "a number of more than 6 digits"
        yield Refusal(
            argument="num_bits",
            value=str(args.num_bits),
            reason=f"`num_bits` is {shown} ({where}), more than the {MOST_BITS} of what is to be quantized",
            hint="give 8, or what the kernels of your engine read",
        )


def _ordering(modifier: Any) -> Iterator[Refusal]:
    """An `actorder` at the modifier is handed to every scheme unchecked, any text for one of them."""
    given = getattr(modifier, "actorder", None)
    if given is None or "actorder" not in modifier.model_fields_set:
        return
    text = str(getattr(given, "value", given))
    if text not in ORDERINGS:
        removed = text in (ActivationOrdering.GROUP.value, ActivationOrdering.DYNAMIC.value)
        reason = "is no longer supported" if removed else "is no order of columns"
        yield Refusal(
            argument="actorder",
            value=text,
            reason=f"actorder `{text}` {reason}: llm-compressor takes it at the modifier without a word, and engines "
            "refuse what comes of it"
            if removed
            else f"actorder `{text}` {reason}, and columns would be taken as they come",
            hint="use `actorder: static`, which is also the default, or `null`",
        )
