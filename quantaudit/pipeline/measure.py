"""Measuring: settings → profile."""

from __future__ import annotations

from functools import partial

from quantaudit.common.outputs.resume import RunState
from quantaudit.common.progress import Stages, silent_stages
from quantaudit.common.ranks.team import team
from quantaudit.measure.paper import reference_json
from quantaudit.measure.profile import Profile
from quantaudit.measure.shard import Shard
from quantaudit.model.blockwise.memory import memory_budget
from quantaudit.pipeline.files import InputFiles
from quantaudit.pipeline.identity import resumable
from quantaudit.pipeline.passes import measure_inputs, ratios_of_inputs
from quantaudit.pipeline.plan.fit import prepare_within
from quantaudit.pipeline.prepare import AuditInputs, Say, silent
from quantaudit.pipeline.schedule import announce, schedule
from quantaudit.settings import Settings


def measure(
    settings: Settings,
    *,
    files: InputFiles | None = None,
    shard: Shard | None = None,
    stages: Stages = silent_stages,
    say: Say = silent,
    state: RunState | None = None,
    memory: int | None = None,
) -> Profile:
    """The profile of a model on a corpus, or on a shard of it. files: those of the settings, where they are open.

    state: what a run before had finished, and where this one keeps what it finishes. memory: bytes that the process may
    use, by default what it uses and most of what is available; a model whose weights do not fit is run block by block.

    Raises a QuantauditError that names cause and remedy.
    """
    inputs = prepare_within(settings, memory_budget(memory), say, files=files, stages=stages, simulated=False)
    shards = 1 if shard is None else shard.count
    announce(inputs, stages, say, partial(schedule, inputs, simulated=False, shards=shards))
    return _measured(inputs, stages, state, shard)


def measure_as_published(
    settings: Settings,
    *,
    files: InputFiles | None = None,
    stages: Stages = silent_stages,
    say: Say = silent,
    state: RunState | None = None,
    memory: int | None = None,
) -> tuple[Profile, str]:
    """The profile, and the statistics of arXiv 2605.15572 as JSON: those of single tokens take a pass more."""
    inputs = prepare_within(settings, memory_budget(memory), say, files=files, stages=stages, simulated=False)
    announce(inputs, stages, say, partial(schedule, inputs, simulated=False, ratios=True))
    profile = _measured(inputs, stages, state, None)
    return profile, reference_json(profile, ratios_of_inputs(inputs, stages))


def _measured(inputs: AuditInputs, stages: Stages, state: RunState | None, shard: Shard | None) -> Profile:
    with resumable(state, inputs, verb="measure", shard=str(shard)):
        profile = measure_inputs(inputs, stages, shard)
    team().only_first_goes_on()
    return profile
