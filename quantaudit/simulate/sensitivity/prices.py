"""Prices of fused groups, in nats: from a backward pass where one fits, else from damage and a few simulated groups."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from torch import Tensor

from quantaudit.common.outputs.resume import units_of
from quantaudit.common.progress import Advance, Stages, no_advance, silent_stages
from quantaudit.common.ranks.team import deal, team
from quantaudit.errors import MeasurementError
from quantaudit.model.sites import Group
from quantaudit.simulate.cost import GRADIENTS
from quantaudit.simulate.experiment import Experiment
from quantaudit.simulate.group_effect import GroupEffect
from quantaudit.simulate.logits.one_group import simulate_alone
from quantaudit.simulate.logits.rounding_floor import RoundingFloor
from quantaudit.simulate.replay.backward_pass import RecordedPass, record_backward, record_forward
from quantaudit.simulate.replay.linear_sensitivity import LinearSensitivity, PriceList
from quantaudit.simulate.replay.replay_groups import replay_groups
from quantaudit.simulate.sensitivity.draws import draws_for
from quantaudit.simulate.sensitivity.from_damage import anchors, fill_prices

_NOTHING: Mapping[str, Mapping[str, Tensor]] = {}


def record_pass(
    experiment: Experiment,
    *,
    source: str = "auto",
    price_alone: Container[str] = (),
    stages: Stages = silent_stages,
) -> tuple[RecordedPass, str | None]:
    """The pass that replays need, with gradients where `source` (of SCORES) asks for them and they fit; and why not.

    price_alone: names of schemes under which the output projection, which no usual recipe quantizes, gets no price.
    Raises MeasurementError when gradients are demanded and the backward pass fails.
    """
    note: str | None = None
    if source != "damage":
        own = deal(experiment.samples, lambda sample: len(sample.ids))
        tick = stages(GRADIENTS, len(own), "samples")
        at_linears = experiment.only(outside_blocks(experiment))
        linears = LinearSensitivity(experiment=at_linears, only=_without_head(at_linears, price_alone))
        try:
            return _record_draws(experiment, linears, progress=tick), None
        except (RuntimeError, AssertionError) as error:
            note = _failed(error)
            linears.forget()
            if source == "gradient":
                raise MeasurementError(
                    note, where="--score gradient", hint="use --score damage, or fewer --evaluation-tokens"
                ) from error
    return record_forward(experiment), note


def _record_draws(
    experiment: Experiment,
    linears: LinearSensitivity,
    *,
    draws: int | None = None,
    seed: int = 0,
    progress: Advance = no_advance,
) -> RecordedPass:
    """A backward pass for each draw, by default as many as the samples need, or one where so many do not fit.

    Raises RuntimeError or AssertionError where not even one succeeds: out of memory, an operation without a derivative,
    or a model that learns in training mode alone (Reformer).
    """
    wanted = draws_for(sum(len(sample.ids) for sample in experiment.samples)) if draws is None else draws
    try:
        return record_backward(experiment, linears, draws=wanted, seed=seed, progress=progress)
    except (RuntimeError, AssertionError):
        linears.forget()
        if draws is not None or wanted == 1:
            raise
    # Only here has the traceback gone, and with it what it keeps alive.
    return record_backward(experiment, linears, draws=1, seed=seed, progress=progress)


def price_from_damage(
    experiment: Experiment,
    effects: Sequence[GroupEffect],
    floor: RoundingFloor,
    *,
    stages: Stages = silent_stages,
) -> None:
    """Fill in prices from damage, where there are no gradients.

    They rest on groups that were simulated alone: those that have a KL, and a few that get theirs here.
    """
    simulate_alone(experiment, anchors(effects), stages=stages)
    fill_prices(effects, floor)


def price_groups(
    experiment: Experiment,
    *,
    factors: Mapping[str, Mapping[str, Tensor]] = _NOTHING,
    only: Mapping[str, Container[str]] | None = None,
    draws: int | None = None,
    seed: int = 0,
    progress: Advance = no_advance,
) -> PriceList:
    """Prices alone, from gradients, of the experiment's groups.

    factors, only: as for `replay_groups`. draws: backward passes averaged for each sample, by default as many as it
    needs and as fit. `progress` is called after each sample, and as `replay_groups` does. Raises MeasurementError where
    the backward pass fails.
    """
    units = units_of("prices")
    finished = team().from_first(units.get_json("all"))
    if finished is not None:
        return {(group, scheme): price for group, scheme, price in finished}
    plain = [scheme for scheme in experiment.schemes if scheme.name not in factors]
    at_linears = replace(experiment.only(outside_blocks(experiment)), schemes=plain)
    linears = LinearSensitivity(experiment=at_linears, only=only)
    try:
        recorded = _record_draws(experiment, linears, draws=draws, seed=seed, progress=progress)
    except (RuntimeError, AssertionError) as error:
        raise MeasurementError(_failed(error), hint="use fewer --evaluation-tokens, or another --device") from error
    every = {scheme.name for scheme in experiment.schemes}
    with closing(recorded):
        effects = replay_groups(
            experiment, recorded, progress, factors=factors, only=only, price_alone=every, units=units
        )
    units.put_json("all", [[*effect.key, effect.price] for effect in effects])
    return {effect.key: effect.price for effect in effects}


def outside_blocks(experiment: Experiment) -> list[Group]:
    """Groups whose effect is not all in their block: those outside, or all where layers share keys and values."""
    text = experiment.model.config.get_text_config()
    shared = bool(getattr(text, "num_kv_shared_layers", 0))
    return [group for group in experiment.groups if group.layer is None or shared]


def _without_head(experiment: Experiment, price_alone: Container[str]) -> dict[str, list[str]]:
    """By group name, names of the schemes that it is priced under: with a large vocabulary one head costs as much as
    many blocks.
    """
    names = [scheme.name for scheme in experiment.schemes]
    few = [name for name in names if name not in price_alone]
    return {group.name: few if group.projection == "lm_head" else names for group in experiment.groups}


def _failed(error: Exception) -> str:
    return f"no prices from gradients: the backward pass failed ({str(error).partition(chr(10))[0]})"
