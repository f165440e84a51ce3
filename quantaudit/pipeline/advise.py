"""Advice: on a recipe, by the model of a card, loaded as it was measured; or schemes chosen by a card, as a recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from quantaudit.advise.allocate import Allocation
from quantaudit.advise.goal import Goal, Offers
from quantaudit.advise.options import STRENGTHS
from quantaudit.advise.run import Advice, advise, with_advice
from quantaudit.advise.search import ADVISED
from quantaudit.advise.written.allocated_recipe import header, recipe_text
from quantaudit.advise.written.amended_recipe import amended
from quantaudit.card.amend import amend_card
from quantaudit.common.files import write_text
from quantaudit.common.outputs.resume import RunState
from quantaudit.common.progress import Stages, silent_stages
from quantaudit.common.ranks.team import team
from quantaudit.gate.evidence import gather
from quantaudit.gate.report import GateReport, score_text
from quantaudit.gate.run import judge
from quantaudit.model.blockwise.memory import memory_budget
from quantaudit.pipeline.case import CaseFiles, open_case
from quantaudit.pipeline.identity import resumable
from quantaudit.pipeline.passes import fork_count, shared
from quantaudit.pipeline.prepare import Say, silent
from quantaudit.pipeline.schedule import announce_stages
from quantaudit.policy import Policy
from quantaudit.recipe.parse import parse_recipe
from quantaudit.simulate.cost import CHOICES, RENDERING, advise_stages


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvisedRecipe:
    """The advice, and the recipe as text that llm-compressor reads. card_created: of the card that it is about."""

    advice: Advice
    text: str
    card_created: str

    def write(self, path: Path, card: Path) -> None:
        """Write the recipe, and add the advice to a card with its simulation, for a gate to find by its digest.

        Both change as one. Raises as `amend_card`.
        """
        change = partial(with_advice, advice=self.advice, name=path.stem)
        amend_card(card, change, of=self.card_created, outside={path: self.text.encode("utf-8")})


def advise_case(
    files: CaseFiles,
    goal: Goal,
    offers: Offers,
    *,
    stages: Stages = silent_stages,
    say: Say = silent,
    state: RunState | None = None,
    memory: int | None = None,
) -> AdvisedRecipe:
    """The least change of a recipe that reaches the goal, simulated before it is given.

    state: what a run before had finished, and where this one keeps what it finishes. memory: bytes that the process may
    use, by default what it uses and most of what is available; a model that does not fit is run block by block, and
    nothing is offered smoothing, which changes all weights before any is quantized.

    Raises RecipeError where the recipe does what cannot be simulated, UsageError where the card has no KL of the scheme
    that the goal names, and other QuantauditErrors for files that do not belong together.
    """
    goal.scheme_kl(files.card.simulation)  # says at once what it does not know
    case = open_case(files, stages, say, memory=memory_budget(memory))
    inputs = case.inputs
    if inputs.loaded.weights is not None and offers.smoothing:
        say("smoothing is not offered, as it needs the whole model in memory")
        offers = replace(offers, smoothing=False)
    calibration = inputs.corpus.info.calibration.tokens if offers.smoothing else 0
    with inputs.computed():
        announce_stages(
            inputs,
            stages,
            say,
            f"prices on {case.evaluated:,} evaluation tokens, and some {CHOICES} choices simulated on them",
            partial(
                advise_stages,
                case.evaluated,
                advised=ADVISED,
                smoothing=(1 + len(STRENGTHS)) * calibration,
                calibrating_again=calibration,
                sites=len(files.card.sites),
            ),
            tapped=offers.smoothing,
            forks=fork_count(inputs),
        )
        original = files.spec.recipe.read_text(encoding="utf-8")
        about = {
            "recipe": original,
            "goal": asdict(goal),
            "offers": asdict(offers),
        }
        with resumable(state, inputs, files.profile, verb="advise", **about):
            simulation = files.card.simulation
            advice = shared(
                inputs, lambda shown: advise(case.opened, goal, offers, simulation=simulation, stages=shown), stages
            )
        team().only_first_goes_on()
        stages(RENDERING, 0)
        text = amended(advice, files.card.model, inputs.loaded.model, original)
        return AdvisedRecipe(advice=advice, text=text, card_created=files.card.created)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatedRecipe:
    """The schemes that are advised, the recipe as text that llm-compressor reads, and what the gate says of it."""

    allocation: Allocation
    text: str
    report: GateReport

    def write(self, path: Path) -> None:
        """Write the recipe. Raises OutputError."""
        write_text(path, self.text)


def write_allocation(allocation: Allocation, goal: str, policy: Policy) -> AllocatedRecipe:
    """The recipe of chosen schemes, and what the gate says of it. goal: the budget in words.

    Its KL is the gate's, of the same recipe on the same card: simulated where this very one was, else estimated.
    """
    bare = recipe_text(allocation, [])
    report = judge(gather(parse_recipe(bare, "recipe.yaml"), allocation.card, policy, None))
    lines = header(
        allocation, goal, score_text(report.score, report.limits), measured=report.score.source == "measured"
    )
    if report.outcome == "inconclusive":
        lines.append(f"Not to be relied on, as the gate is inconclusive: {report.headline}")
    elif report.outcome == "fail":
        lines.append(f"The best within its budget, and yet it fails the gate: {report.headline}")
    return AllocatedRecipe(allocation=allocation, text=recipe_text(allocation, lines), report=report)
