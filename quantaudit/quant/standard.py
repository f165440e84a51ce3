"""Schemes by name, fitted to a model: in group sizes that divide its weights, or why none does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from compressed_tensors.quantization import QuantizationScheme, QuantizationStrategy

from quantaudit.common.choices import GROUP_SIZES, INT8_SCHEMES, parse_scheme_set
from quantaudit.errors import UsageError
from quantaudit.quant.schemes import NAMED, Scheme, find_scheme, in_groups
from quantaudit.quant.support import obstacles

Shapes = Mapping[str, tuple[int, int]]
"""[out, in] of the Linears that will be quantized, by path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenSchemes:
    """What is simulated. price_alone: names of schemes whose fused groups are priced without a damage of their own.

    left_out: schemes of the standard set that do not fit the model, and why.
    """

    schemes: tuple[Scheme, ...]
    price_alone: frozenset[str]
    left_out: tuple[tuple[Scheme, str], ...]


def choose_schemes(scheme_set: str, asked: Iterable[str], shapes: Shapes) -> ChosenSchemes:
    """The schemes of a set (`--schemes`) and those that are asked for one by one (`--scheme`).

    Where both hold the same scheme, it is the one asked for. Schemes that are asked for are taken as they are; the
    standard ones in the largest group size that divides all weights. Raises UsageError for an unknown name, and for
    what is asked for and does not fit.
    """
    named, standard = parse_scheme_set(scheme_set)
    by_option = {"--schemes": [name for name in named if name not in standard], "--scheme": asked}
    explicit = []
    for option, names in by_option.items():
        for name in names:
            explicit.append(find_scheme(name))
            check_shapes(explicit[-1], shapes, option)
    kept: list[Scheme] = []
    left_out: list[tuple[Scheme, str]] = []
    for scheme in map(find_scheme, standard):
        if any(_alike(scheme, other) and scheme.name != other.name for other in explicit):
            continue
        fitted, reason = fit(scheme, shapes)
        if reason is None:
            kept.append(fitted)
        else:
            left_out.append((scheme, reason))
    full = {*INT8_SCHEMES, *(scheme.name for scheme in explicit)}
    schemes = {scheme.name: scheme for scheme in (*kept, *explicit)}
    return ChosenSchemes(
        schemes=tuple(schemes.values()),
        price_alone=frozenset(name for name in schemes if name not in full),
        left_out=tuple(left_out),
    )


def fit(scheme: Scheme, shapes: Shapes) -> tuple[Scheme, str | None]:
    """The scheme in the largest group size that divides all weights; and where none does, the reason."""
    sizes = [in_groups(scheme, size) for size in GROUP_SIZES] if _resizable(scheme) else [scheme]
    reason = None
    for candidate in sizes:
        reason = _obstacle(candidate, shapes)
        if reason is None:
            return candidate, None
    return scheme, reason


def check_shapes(scheme: Scheme, shapes: Shapes, option: str = "--scheme") -> None:
    """Raises UsageError where a scheme does not fit these Linears; where another group size does, it says which.

    option: that it was asked for with.
    """
    reason = _obstacle(scheme, shapes)
    if reason is None:
        return
    smaller, left = fit(scheme, shapes)
    name = _name_of(smaller) if left is None else None
    raise UsageError(
        reason,
        where=f"{option} {scheme.name}",
        hint=f"{option} {name}, or a recipe that leaves such modules out, given with --recipe"
        if name
        else "write a recipe that leaves such modules out, and give it with --recipe",
    )


def _name_of(scheme: Scheme) -> str | None:
    """The name, with its group size, of the scheme that does the same as this one; None where none does."""
    sized = (in_groups(NAMED[name], size) for name in NAMED if "group_" in name for size in GROUP_SIZES)
    same = (scheme.weights, scheme.input_activations)
    return next((one.name for one in sized if (one.weights, one.input_activations) == same), None)


def _resizable(scheme: Scheme) -> bool:
    """Whether the group size is a choice: of integer weights, but not of formats that have a size of their own."""
    args = scheme.weights
    return args is not None and args.strategy == QuantizationStrategy.GROUP and args.type == "int"


def _obstacle(scheme: Scheme, shapes: Shapes) -> str | None:
    resolved = QuantizationScheme(
        targets=["Linear"], weights=scheme.weights, input_activations=scheme.input_activations
    )
    for path, shape in shapes.items():
        if reasons := obstacles(resolved, shape):
            return f"{path}: {reasons[0]}"
    return None


def _alike(a: Scheme, b: Scheme) -> bool:
    return (a.weights, a.input_activations, a.observer) == (b.weights, b.input_activations, b.observer)
