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
from quantaudit.simulate.logits.one_group import simulate_alone
from quantaudit.simulate.logits.rounding_floor import RoundingFloor
from quantaudit.simulate.records import GroupRow
from quantaudit.simulate.replay.backward_pass import RecordedPass, record_backward, record_forward
from quantaudit.simulate.replay.group_effects import replay_groups
from quantaudit.simulate.replay.linear_sensitivity import LinearSensitivity, PriceList
from quantaudit.simulate.sensitivity.from_damage import anchors, prices_on_curve

_NOTHING: Mapping[str, Mapping[str, Tensor]] = {}


def record_pass(
    model: Any,
    architecture: Architecture,
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, Mapping[str, QParams | None]],
    *,
    score: str = "auto",
    stages: Stages = silent_stages,
) -> tuple[RecordedPass, str | None]:
    """The pass that replays need, with gradients where `score` (of SCORES) asks for them and they fit; and why not.

    qparams: by scheme name, then by group name. Raises MeasurementError when gradients are demanded and fail.
    """
    note: str | None = None
    if score != "damage":
        tick = stages("taking gradients", len(samples), "samples")
        linears = LinearSensitivity(
            model=model, groups=outside_blocks(model, architecture), schemes=schemes, qparams=qparams
        )
        try:
            return record_backward(model, architecture, samples, linears, progress=tick), None
        except (RuntimeError, AssertionError) as error:
            # Out of memory, an operation without a derivative, or a model that learns in training mode only (Reformer).
            note = _failed(error)
            linears.inputs.clear()  # the traceback holds them
            if score == "gradient":
                raise MeasurementError(
                    note, where="--score gradient", hint="use --score damage, or fewer --evaluation-tokens"
                ) from error
    return record_forward(model, architecture.blocks, samples), note


def price_from_damage(
    model: Any,
    groups: Sequence[Group],
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, Mapping[str, QParams | None]],
    rows: Sequence[GroupRow],
    floor: RoundingFloor,
    *,
    stages: Stages = silent_stages,
) -> list[GroupRow]:
    """The rows with prices from damage, where there are no gradients. groups: those inside the decoder blocks.

    Prices rest on groups that were simulated alone: those whose rows have a KL, and a few that get theirs here.
    """
    known = simulate_alone(model, groups, samples, schemes, qparams, rows, anchors(rows), stages=stages)
    return prices_on_curve(known, floor)


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
    linears = LinearSensitivity(
        model=model, groups=outside_blocks(model, architecture), schemes=plain, qparams=qparams, only=only
    )
    try:
        recorded = record_backward(model, architecture, samples, linears, draws=draws, seed=seed, progress=progress)
    except (RuntimeError, AssertionError) as error:
        raise MeasurementError(_failed(error), hint="use fewer --evaluation-tokens, or another --device") from error
    rows = replay_groups(
        model,
        architecture,
        recorded,
        schemes,
        qparams,
        progress,
        factors=factors,
        only=only,
        damage=False,
        weights_only=False,
    )
    return {(row.group, row.scheme): row.price for row in rows}


def outside_blocks(model: Any, architecture: Architecture) -> list[Group]:
    """Groups whose effect is not all in their block: those outside, or all where layers share keys and values."""
    text = model.config.get_text_config()
    shared = bool(getattr(text, "num_kv_shared_layers", 0))
    return [group for group in architecture.groups if group.layer is None or shared]


def _failed(error: Exception) -> str:
    return f"no prices from gradients: the backward pass failed ({str(error).partition(chr(10))[0]})"
