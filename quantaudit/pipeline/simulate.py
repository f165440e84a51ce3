"""Simulating: settings + profile → what schemes and recipes do to the model."""

from __future__ import annotations

from functools import partial

from quantaudit.common.outputs.resume import RunState
from quantaudit.common.progress import Stages, silent_stages
from quantaudit.common.ranks.team import team
from quantaudit.measure.profile import Profile
from quantaudit.model.blockwise.memory import memory_budget
from quantaudit.pipeline.files import InputFiles
from quantaudit.pipeline.identity import resumable
from quantaudit.pipeline.passes import simulate_inputs
from quantaudit.pipeline.plan.fit import prepare_within
from quantaudit.pipeline.prepare import Say, check_profile, silent
from quantaudit.pipeline.schedule import announce, schedule
from quantaudit.settings import Settings
from quantaudit.simulate.records import Simulation


def simulate(
    settings: Settings,
    profile: Profile,
    *,
    files: InputFiles | None = None,
    stages: Stages = silent_stages,
    say: Say = silent,
    state: RunState | None = None,
    memory: int | None = None,
) -> Simulation:
    """What the schemes of a report, and the settings' own and recipes, do to a measured model.

    state: what a run before had finished, and where this one keeps what it finishes. memory: bytes that the process may
    use, by default what it uses and most of what is available; a model that does not fit is run block by block.

    Raises FormatError where the profile is of another model or corpus, and other QuantauditErrors.
    """
    inputs = prepare_within(settings, memory_budget(memory), say, files=files, stages=stages, measured=True)
    check_profile(inputs, profile)
    announce(inputs, stages, say, partial(schedule, inputs, measured=True))
    with resumable(state, inputs, profile, verb="simulate"):
        simulation = simulate_inputs(inputs, profile, stages)
    team().only_first_goes_on()
    return simulation
