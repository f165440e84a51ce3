"""What replays measure of each call of a block, kept apart until all ranks have theirs, and then added up in order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from quantaudit.common.ranks.team import gather, in_order
from quantaudit.simulate.replay.linear_sensitivity import finite_mean


class CallSums(NamedTuple):
    """One replayed call. number: of its sample. rows, tokens: of the block's output, and of the sample.

    damage: Σ over rows of ‖Δh‖² / ‖h‖², None where it was not measured. prices: Σ over tokens of ½·(g·Δy)², in nats,
    one for each draw; None where no gradient came. squares: Σ over tokens and draws of the squares of these terms, None
    where the residual branch did not run.
    """

    number: int
    rows: int
    tokens: int
    damage: float | None
    prices: list[float] | None
    squares: float | None


Variants = dict[str, list[CallSums]]
"""By the name of a scheme, or of a way to quantize weights alone; without what was not replayed."""


@dataclass(frozen=True, slots=True)
class ReplayedError:
    """What one replay measured; None where it was not measured or not finite. price, price_stderr: nats per token.

    The standard error is that of the labels that gradients are drawn from. Over draws g·Δy is nearly normal around
    zero, and the variance of half its square two thirds of the mean square of that.
    """

    damage: float | None
    price: float | None
    price_stderr: float | None

    @classmethod
    def of(cls, calls: Sequence[CallSums], draws: int) -> ReplayedError:
        """Means over the tokens of calls, in the order of their samples."""
        damages = [call.damage for call in calls if call.damage is not None]
        rows, tokens = sum(call.rows for call in calls), sum(call.tokens for call in calls)
        with_gradient = any(call.prices is not None for call in calls)
        price = in_order(value for call in calls for value in call.prices or ())
        squares = [call.squares for call in calls if call.squares is not None]
        return cls(
            finite_mean(in_order(damages), rows) if damages else None,
            finite_mean(price, tokens * draws) if with_gradient else None,
            finite_mean(math.sqrt(in_order(squares) * 2 / 3), tokens * draws) if squares else None,
        )


@dataclass(slots=True, kw_only=True)
class PendingCall:
    """One replayed call, whose sums are still on their device: float64 scalars."""

    number: int
    rows: int
    tokens: int
    damage: Tensor | None
    prices: list[Tensor] | None
    squares: Tensor | None


def fetched(calls: Sequence[PendingCall]) -> list[CallSums]:
    """The numbers, brought to the host at once."""
    scalars = [
        value for call in calls for value in (call.damage, *(call.prices or ()), call.squares) if value is not None
    ]
    values = iter(torch.stack(scalars).tolist() if scalars else [])
    return [
        CallSums(
            call.number,
            call.rows,
            call.tokens,
            None if call.damage is None else next(values),
            None if call.prices is None else [next(values) for _ in call.prices],
            None if call.squares is None else next(values),
        )
        for call in calls
    ]


def of_all_ranks(own: Mapping[str, Variants]) -> dict[str, Variants]:
    """What all ranks have replayed, by group: calls of every variant in the order of their samples."""
    united: dict[str, Variants] = {}
    for part in gather({name: {variant: [*calls] for variant, calls in of.items()} for name, of in own.items()}):
        for name, variants in part.items():
            for variant, calls in variants.items():
                united.setdefault(name, {}).setdefault(variant, []).extend(calls)
    for variants in united.values():
        for calls in variants.values():
            calls.sort(key=lambda call: call.number)
    return united


def restored(kept: Mapping[str, Sequence[Sequence[object]]] | None) -> Variants | None:
    """What an interrupted run kept as JSON."""
    if kept is None:
        return None
    return {variant: [CallSums(*call) for call in calls] for variant, calls in kept.items()}  # type: ignore[arg-type]
