"""What can be done to a fused group instead of what a recipe does to it, as far as a recipe can say it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, QuantizationStrategy, QuantizationType

from quantaudit.quant.support import obstacles
from quantaudit.recipe.digest import identity

STRENGTHS = (0.5, 0.8)
"""Of SmoothQuant: its authors' choice, and theirs for models with stronger outliers (arXiv 2211.10438, section 5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to treat a fused group. scheme: None where it is left unquantized.

    keeps: whether the group keeps the recipe's own format, so that no speed is lost: the same bits for weights and
    inputs, and scales that are static where they were. alias: the name that it has in other menus, where it is what a
    recipe does already. strength: of SmoothQuant before, for a group whose input a norm alone puts out; None for none.
    """

    name: str
    title: str
    scheme: QuantizationScheme | None
    keeps: bool
    alias: str | None = None
    strength: float | None = None

    def answers(self, name: str) -> bool:
        """Whether this is the option of that name."""
        return name in (self.name, self.alias)


def menu(
    scheme: QuantizationScheme, *, moving_averages: bool = True, unquantized: bool = True, smoothing: bool = False
) -> list[Option]:
    """Options for a group that a recipe gives `scheme`, the recipe's own first, unquantized last.

    moving_averages: whether to offer the observer `minmax`, whose ranges hang on the order of the calibration samples.
    unquantized: whether to offer that a group be left alone, which not every engine runs beside quantized ones.
    smoothing: whether to offer static inputs as written behind SmoothQuant.
    """
    written = Option(name="as_written", title="as written", scheme=scheme, keeps=True)
    others: list[Option] = []
    for name, title, args, keeps in _inputs(scheme.input_activations, moving_averages):
        changed = scheme.model_copy(update={"input_activations": args})
        if identity(changed) == identity(scheme):
            written = replace(written, alias=name)
        else:
            others.append(Option(name=name, title=title, scheme=changed, keeps=keeps))
    if smoothing and _static(scheme.input_activations):
        others += [
            Option(
                name=f"smoothed_{strength:g}",
                title=f"static as written, smoothed with strength {strength:g}",
                scheme=scheme,
                keeps=True,
                strength=strength,
            )
            for strength in STRENGTHS
        ]
    alone = Option(name="unquantized", title="left unquantized", scheme=None, keeps=False)
    return [written, *others, *([alone] if unquantized else [])]


def fits(option: Option, shapes: list[tuple[int, ...]]) -> bool:
    """Whether an option can be simulated on Linears whose weights have these shapes [out, in]."""
    return option.scheme is None or not any(obstacles(option.scheme, shape) for shape in shapes)


def _static(args: QuantizationArgs | None) -> bool:
    return args is not None and not args.dynamic and args.strategy == QuantizationStrategy.TENSOR


def _inputs(args: QuantizationArgs | None, moving_averages: bool) -> Iterator[tuple[str, str, QuantizationArgs, bool]]:
    """(name, title, arguments, keeps) of other treatments of an input; only 8-bit formats of whole tokens have any."""
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
    """Arguments with some replaced, validated anew: the toolkit fills in what follows from them."""
    kept = {"num_bits": args.num_bits, "type": args.type, "strategy": args.strategy, "dynamic": args.dynamic}
    return QuantizationArgs(**{**kept, "symmetric": args.symmetric, **values})
