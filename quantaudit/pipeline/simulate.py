"""Simulating: settings + profile → what schemes and recipes do to the model."""

from __future__ import annotations

from functools import partial

from quantaudit.common.outputs.resume import RunState
from quantaudit.common.progress import Stages, silent_stages
from quantaudit.measure.profile import Profile
from quantaudit.pipeline.files import InputFiles
from quantaudit.pipeline.identity import resumable
from quantaudit.pipeline.passes import simulate_inputs
from quantaudit.pipeline.prepare import Say, check_profile, prepare, silent
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
) -> Simulation:
    """What the schemes of a report, and the settings' own and recipes, do to a measured model.

    state: what a run before had finished, and where this one keeps what it finishes.

    Raises FormatError where the profile is of another model or corpus, and other QuantauditErrors.
    """
    inputs = prepare(settings, say, files=files, stages=stages)
    check_profile(inputs, profile)
    announce(inputs, stages, say, partial(schedule, inputs, measured=True))
    with resumable(state, inputs, profile, verb="simulate"):
        return simulate_inputs(inputs, profile, stages)
