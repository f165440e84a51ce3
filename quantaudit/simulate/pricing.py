"""Prices of fused groups, in nats: from a backward pass where one fits, else from damage and a few simulated groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import MeasurementError, UsageError
from quantaudit.model.sites import Architecture, Group
from quantaudit.progress import Advance, Stages, silent_stages
from quantaudit.quant.scales import QParams
from quantaudit.quant.schemes import Scheme
from quantaudit.simulate.calibrate import ANCHORS, Simulated, price_by_damage
from quantaudit.simulate.logits import score_plans
from quantaudit.simulate.plan import Plan
from quantaudit.simulate.predict import Floor
from quantaudit.simulate.price import PriceList, price_groups
from quantaudit.simulate.records import GroupRow

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

    Raises MeasurementError when prices from gradients are demanded and the backward pass fails.
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
    tick = stages("simulating single groups", ANCHORS * len(samples))
    inside = [group for group in architecture.groups if group.layer is not None]
    priced = price_by_damage(rows, _single(model, inside, samples, schemes, qparams, tick), floor)
    known = any(row.price is not None for row in priced)
    return Pricing(rows=priced, source="damage" if known else None, note=note)


def with_prices(rows: Sequence[GroupRow], prices: PriceList) -> list[GroupRow]:
    """The rows with their prices."""
    return [row.model_copy(update={"price": prices.get((row.group, row.scheme))}) for row in rows]


def _single(
    model: Any,
    groups: Sequence[Group],
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, Mapping[str, QParams | None]],
    progress: Advance,
) -> Simulated:
    """Simulates groups one by one, each under its row's scheme."""
    named = {scheme.name: scheme for scheme in schemes}

    def simulated(rows: Sequence[GroupRow]) -> list[float | None]:
        plans = [
            Plan.of_groups(
                groups=groups,
                name=f"{row.group} {row.scheme}",
                title=row.group,
                schemes={row.group: named[row.scheme]},
                qparams=qparams[row.scheme],
            )
            for row in rows
        ]
        return [row.kl for row in score_plans(model, samples, plans, progress=progress)]

    return simulated
