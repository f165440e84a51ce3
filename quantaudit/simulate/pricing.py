"""Prices of fused groups, in nats: from a backward pass where one fits, else from damage and a few simulated groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import MeasurementError, UsageError
from quantaudit.model.sites import Architecture
from quantaudit.progress import Stages, silent_stages
from quantaudit.quant.scales import QParams
from quantaudit.quant.schemes import Scheme
from quantaudit.simulate.calibrate import anchors, price_by_damage
from quantaudit.simulate.predict import Floor
from quantaudit.simulate.price import PriceList, price_groups
from quantaudit.simulate.records import GroupRow
from quantaudit.simulate.single import simulate_single

SCORES = ("auto", "gradient", "damage")
"""Whence prices come: from a backward pass, demanded or where it fits, or from damage and a few simulated groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """Rows with their prices, whence those came (None where there are none), and why not from gradients, if so."""

    rows: list[GroupRow]
    source: Literal["gradient", "damage"] | None
    note: str | None


def find_score(name: str) -> str:
    """Check the name of a score. Raises UsageError."""
    if name not in SCORES:
        raise UsageError("unknown score", where=f"--score {name}", hint=f"one of {', '.join(SCORES)}")
    return name


def price(
    model: Any,
    architecture: Architecture,
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, Mapping[str, QParams | None]],
    rows: Sequence[GroupRow],
    floor: Floor,
    *,
    score: str = "auto",
    stages: Stages = silent_stages,
) -> Pricing:
    """Price every row. rows: damage by group and scheme. qparams: by scheme name, then by group name. score: of SCORES.

    Prices from damage rest on groups that were simulated alone: those whose rows have a KL, and a few that get theirs
    here. Raises MeasurementError when prices from gradients are demanded and the backward pass fails.
    """
    note: str | None = None
    if score != "damage":
        tick = stages("pricing groups", len(samples), "samples")
        try:
            prices = price_groups(
                model, architecture.groups, samples, schemes, qparams, blocks=architecture.blocks, progress=tick
            )
            return Pricing(rows=with_prices(rows, prices), source="gradient", note=None)
        except RuntimeError as error:
            # Out of memory, or an operation without a derivative.
            note = f"no prices from gradients: the backward pass failed ({str(error).partition(chr(10))[0]})"
            if score == "gradient":
                raise MeasurementError(
                    note, where="--score gradient", hint="use --score damage, or fewer --evaluation-tokens"
                ) from error
    inside = [group for group in architecture.groups if group.layer is not None]
    known = simulate_single(model, inside, samples, schemes, qparams, rows, anchors(rows), stages=stages)
    priced = price_by_damage(known, floor)
    source: Literal["damage"] | None = "damage" if any(row.price is not None for row in priced) else None
    return Pricing(rows=priced, source=source, note=note)


def with_prices(rows: Sequence[GroupRow], prices: PriceList) -> list[GroupRow]:
    """The rows with their prices."""
    return [row.model_copy(update={"price": prices.get((row.group, row.scheme))}) for row in rows]
