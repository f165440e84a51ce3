"""Options of a fused group: what can be done to it instead of what a recipe does, as far as a recipe can say it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, QuantizationStrategy, QuantizationType

from quantaudit.advise.goal import Offers
from quantaudit.quant.support import obstacles
from quantaudit.recipe.digest import identity

AS_WRITTEN = "as_written"
"""Name of the option that leaves a group as the recipe has it."""
STRENGTHS = (0.5, 0.8)
"""Of SmoothQuant: its authors' choice, and theirs for models with stronger outliers (arXiv 2211.10438, section 5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to treat a fused group. scheme: None where it is left unquantized.

    keeps_format: whether the group keeps the recipe's own format, so that no speed is lost: the same bits for weights
    and inputs, and scales that are static where they were. alias: the name that it has among the options of other
    schemes, where it is what a recipe does already. strength: of SmoothQuant before, for a group whose input is the
    output of a norm alone; None for none.
    """

    name: str
    title: str
    scheme: QuantizationScheme | None
    keeps_format: bool
    alias: str | None = None
    strength: float | None = None

    def is_named(self, name: str) -> bool:
        """Whether this is the option of that name."""
        return name in (self.name, self.alias)


def options_for(scheme: QuantizationScheme, offers: Offers) -> list[Option]:
    """Options of a group that a recipe gives `scheme`, the recipe's own first, unquantized last."""
    written = Option(name=AS_WRITTEN, title="as written", scheme=scheme, keeps_format=True)
    others: list[Option] = []
    for name, title, args, keeps_format in _inputs(scheme.input_activations, offers.moving_averages):
        changed = scheme.model_copy(update={"input_activations": args})
        if identity(changed) == identity(scheme):
            written = replace(written, alias=name)
        else:
            others.append(Option(name=name, title=title, scheme=changed, keeps_format=keeps_format))
    if offers.smoothing and _static(scheme.input_activations):
        others += [
            Option(
                name=f"smoothed_{strength:g}",
                title=f"static as written, smoothed with strength {strength:g}",
                scheme=scheme,
                keeps_format=True,
                strength=strength,
            )
            for strength in STRENGTHS
        ]
    alone = Option(name="unquantized", title="left unquantized", scheme=None, keeps_format=False)
    return [written, *others, *([alone] if offers.unquantized else [])]


def fits(option: Option, shapes: list[tuple[int, ...]]) -> bool:
    """Whether an option can be simulated on Linears whose weights have these shapes [out, in]."""
    return option.scheme is None or not any(obstacles(option.scheme, shape) for shape in shapes)


def _static(args: QuantizationArgs | None) -> bool:
    return args is not None and not args.dynamic and args.strategy == QuantizationStrategy.TENSOR


def _inputs(args: QuantizationArgs | None, moving_averages: bool) -> Iterator[tuple[str, str, QuantizationArgs, bool]]:
    """(name, title, arguments, keeps_format) of other treatments of an input; only 8 bits of whole tokens have any."""
    if (
        args is None
        or args.num_bits != 8
        or args.strategy
        not in (
            QuantizationStrategy.TENSOR,
            QuantizationStrategy.TOKEN,
        )
    ):
        return
    integer = args.type == QuantizationType.INT
    static = not args.dynamic
    if static:
        for observer, title in (("static_minmax", "whole range"), ("minmax", "moving average of batches")):
            if observer == "minmax" and not moving_averages:
                continue
            for symmetric in (True, False) if integer else (True,):
                grid = "" if symmetric else "asymmetric, "
                name = f"{observer}{'' if symmetric else '_asymmetric'}"
                yield name, f"static, {grid}{title}", _change(args, observer=observer, symmetric=symmetric), True
    for symmetric in (True, False) if integer else (True,):
        dynamic = _change(args, strategy="token", dynamic=True, symmetric=symmetric)
        name = f"dynamic{'' if symmetric else '_asymmetric'}"
        yield name, f"dynamic per token{'' if symmetric else ', asymmetric'}", dynamic, not static


def _change(args: QuantizationArgs, **values: Any) -> QuantizationArgs:
    """Arguments with some replaced, validated again: compressed_tensors fills in what follows from them."""
    kept = {"num_bits": args.num_bits, "type": args.type, "strategy": args.strategy, "dynamic": args.dynamic}
    return QuantizationArgs(**{**kept, "symmetric": args.symmetric, **values})
