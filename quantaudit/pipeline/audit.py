"""The whole audit: checkpoint + corpus → profile → simulation → card."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from time import perf_counter

from quantaudit.card.build import build_card
from quantaudit.card.redact import redact, redact_simulation
from quantaudit.card.schema import Card
from quantaudit.common.outputs.resume import RunState, units_of
from quantaudit.common.progress import Stages, silent_stages
from quantaudit.common.ranks.team import team
from quantaudit.measure.finished_batches import pack_profile, unpack_profile
from quantaudit.measure.profile import Profile
from quantaudit.model.blockwise.memory import memory_budget
from quantaudit.pipeline.files import InputFiles
from quantaudit.pipeline.identity import resumable
from quantaudit.pipeline.passes import measure_inputs, simulate_inputs
from quantaudit.pipeline.plan.fit import prepare_within
from quantaudit.pipeline.prepare import AuditInputs, Say, silent
from quantaudit.pipeline.schedule import announce, schedule
from quantaudit.pipeline.settings_of_profile import recorded_arithmetic
from quantaudit.policy import load_policy
from quantaudit.settings import Settings
from quantaudit.simulate.cost import RENDERING
from quantaudit.simulate.records import Simulation
from quantaudit.simulate.tensors import scale_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The outcome of a whole audit."""

    card: Card
    profile: Profile
    simulation: Simulation

    def _repr_html_(self) -> str:
        """The card's verdict tiles and layer map, for a notebook."""
        return self.card._repr_html_()


@dataclass(frozen=True, slots=True, kw_only=True)
class CardOptions:
    """How a card is made of what was measured. policy: name or path; redact_text: whether to keep text out of it."""

    policy: str = "default"
    redact_text: bool = False


DEFAULT = CardOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What a card is made of. timings: seconds of each step."""

    inputs: AuditInputs
    profile: Profile
    simulation: Simulation
    timings: dict[str, float]


def audit(
    settings: Settings,
    *,
    files: InputFiles | None = None,
    profile: Profile | None = None,
    options: CardOptions = DEFAULT,
    stages: Stages = silent_stages,
    say: Say = silent,
    state: RunState | None = None,
    memory: int | None = None,
) -> Audit:
    """Everything that `quantaudit report` does, except writing files: `measure_and_simulate`, then `audited`.

    options: how the card is made; all others are of `measure_and_simulate`.

    Raises a QuantauditError that names cause and remedy.
    """
    load_policy(options.policy)  # a broken one is not found at the end
    simulated = measure_and_simulate(
        settings, files=files, profile=profile, stages=stages, say=say, state=state, memory=memory
    )
    return audited(simulated, options, stages)


def measure_and_simulate(
    settings: Settings,
    *,
    files: InputFiles | None = None,
    profile: Profile | None = None,
    stages: Stages = silent_stages,
    say: Say = silent,
    state: RunState | None = None,
    memory: int | None = None,
) -> Simulated:
    """Load, measure and simulate. On other ranks than the first one the run ends here.

    files: those of the settings, where they are read already. profile: one measured before, to skip measuring.
    state: what a run before had finished, and where this one keeps what it finishes. memory: bytes that the process may
    use, by default what it uses and most of what is available; a model that does not fit is run block by block.

    Raises a QuantauditError that names cause and remedy.
    """
    if profile is not None and settings.model.arithmetic == "auto":
        settings = settings.changed(arithmetic=recorded_arithmetic(profile))
    start = perf_counter()
    timings: dict[str, float] = {}

    def stage_done(stage: str) -> None:
        timings[stage] = perf_counter() - start - sum(timings.values())

    inputs = prepare_within(
        settings, memory_budget(memory), say, files=files, stages=stages, measured=profile is not None
    )
    stage_done("loading")
    announce(inputs, stages, say, partial(schedule, inputs, measured=profile is not None, rendered=True))
    stage_done("timing")
    with resumable(state, inputs, profile, verb="report"):
        if profile is None:
            profile = _measured(inputs, stages)
            stage_done("measuring")
        simulation = simulate_inputs(inputs, profile, stages)
        stage_done("simulating")
    team().only_first_goes_on()
    return Simulated(inputs=inputs, profile=profile, simulation=simulation, timings=timings)


def audited(simulated: Simulated, options: CardOptions = DEFAULT, stages: Stages = silent_stages) -> Audit:
    """The card of what was measured and simulated. Raises FormatError for the policy."""
    stages(RENDERING, 0)
    inputs, profile, simulation = simulated.inputs, simulated.profile, simulated.simulation
    scales = scale_rows(profile)
    if options.redact_text or profile.provenance.corpus.redacted:
        simulation = redact_simulation(simulation, inputs.corpus.info, inputs.corpus.sample_infos())
        profile = redact(profile)
    card = build_card(profile, scales, simulation, load_policy(options.policy), timings=simulated.timings)
    return Audit(card=card, profile=profile, simulation=simulation)


def _measured(inputs: AuditInputs, stages: Stages) -> Profile:
    """The profile, of which a run that is resumed takes over what it had."""
    units = units_of("measured")
    packed = team().from_first(units.get("profile"))
    if packed is not None:
        return unpack_profile(packed)
    profile = measure_inputs(inputs, stages)
    units.put("profile", pack_profile(profile))
    return profile
