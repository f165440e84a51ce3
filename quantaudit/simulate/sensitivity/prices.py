"""Prices of fused groups, in nats: from a backward pass where one fits, else from damage and a few simulated groups."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from torch import Tensor

from quantaudit.common.progress import Advance, Stages, no_advance, silent_stages
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import MeasurementError
from quantaudit.model.sites import Architecture, Group
from quantaudit.quant.observers import QParams
from quantaudit.quant.schemes import Scheme
from quantaudit.simulate.logits.one_group import simulate_single
from quantaudit.simulate.logits.rounding_floor import Floor
from quantaudit.simulate.records import GroupRow
from quantaudit.simulate.replay.backward_pass import Passage, pass_back, pass_forward
from quantaudit.simulate.replay.group_effects import replay_groups
from quantaudit.simulate.replay.linear_sensitivity import LinearPrices, PriceList
from quantaudit.simulate.sensitivity.from_damage import anchors, price_by_damage

_NOTHING: Mapping[str, Mapping[str, Tensor]] = {}


def pass_once(
    model: Any,
    architecture: Architecture,
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, Mapping[str, QParams | None]],
    *,
    score: str = "auto",
    stages: Stages = silent_stages,
) -> tuple[Passage, str | None]:
    """What replays need, with gradients where `score` (of SCORES) wants them and they fit; and why there are none.

    qparams: by scheme name, then by group name. Raises MeasurementError when gradients are demanded and fail.
    """
    note: str | None = None
    if score != "damage":
        tick = stages("taking gradients", len(samples), "samples")
        linears = LinearPrices(model=model, groups=beyond(model, architecture), schemes=schemes, qparams=qparams)
        try:
            return pass_back(model, architecture, samples, linears, progress=tick), None
        except RuntimeError as error:
            # Out of memory, or an operation without a derivative.
            note = _failed(error)
            linears.reads.clear()  # the traceback holds them
            if score == "gradient":
                raise MeasurementError(
                    note, where="--score gradient", hint="use --score damage, or fewer --evaluation-tokens"
                ) from error
    return pass_forward(model, architecture.blocks, samples), note


def price_by_anchors(
    model: Any,
    groups: Sequence[Group],
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, Mapping[str, QParams | None]],
    rows: Sequence[GroupRow],
    floor: Floor,
    *,
    stages: Stages = silent_stages,
) -> list[GroupRow]:
    """The rows with prices from damage, where there are no gradients. groups: those inside the decoder blocks.

    Prices rest on groups that were simulated alone: those whose rows have a KL, and a few that get theirs here.
    """
    known = simulate_single(model, groups, samples, schemes, qparams, rows, anchors(rows), stages=stages)
    return price_by_damage(known, floor)


def price_groups(
    model: Any,
    architecture: Architecture,
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, Mapping[str, QParams | None]],
    *,
    factors: Mapping[str, Mapping[str, Tensor]] = _NOTHING,
    only: Mapping[str, Container[str]] | None = None,
    draws: int = 1,
    seed: int = 0,
    progress: Advance = no_advance,
) -> PriceList:
    """Prices alone, from gradients, of the groups of `architecture`, which may be fewer than the model's.

    qparams, factors, only: as for `replay_groups`. draws: ways back averaged for each sample. `progress` is called
    after each sample, and as `replay_groups` does. Raises MeasurementError where the backward pass fails.
    """
    plain = [scheme for scheme in schemes if scheme.name not in factors]
    linears = LinearPrices(model=model, groups=beyond(model, architecture), schemes=plain, qparams=qparams, only=only)
    try:
        passage = pass_back(model, architecture, samples, linears, draws=draws, seed=seed, progress=progress)
    except RuntimeError as error:
        raise MeasurementError(_failed(error), hint="use fewer --evaluation-tokens, or another --device") from error
    rows = replay_groups(
        model,
        architecture,
        passage,
        schemes,
        qparams,
        progress,
        factors=factors,
        only=only,
        damage=False,
        weights_only=False,
    )
    return {(row.group, row.scheme): row.price for row in rows}


def beyond(model: Any, architecture: Architecture) -> list[Group]:
    """Groups of which a block's output does not tell all: outside the blocks, or where layers share keys and values."""
    text = model.config.get_text_config()
    shared = bool(getattr(text, "num_kv_shared_layers", 0))
    return [group for group in architecture.groups if group.layer is None or shared]


def _failed(error: RuntimeError) -> str:
    return f"no prices from gradients: the backward pass failed ({str(error).partition(chr(10))[0]})"
