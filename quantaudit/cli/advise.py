"""`quantaudit advise`: a recipe within a budget, from a card alone; or a given one changed, by simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantaudit.cli import options
from quantaudit.settings import CardSpec, CaseSpec

if TYPE_CHECKING:
    from quantaudit.advise.budget import Budget
    from quantaudit.advise.goal import Goal, Offers
    from quantaudit.gate.report import GateReport

EXAMPLE = (
    "Example: quantaudit advise --card card/card.json --max-bits 5.5 --out recipe.yaml; or quantaudit advise "
    "recipes/w8a8_static.yaml --card card/card.json --model demo --out advised.yaml --as-good-as dynamic"
)


TOO_LITTLE_TEXT = ("QA516",)
"""A budget of KL is kept or not on the tokens that were asked for; whether these are enough for a verdict is said."""

Recipe = Annotated[
    Path | None, typer.Argument(metavar="RECIPE", help="llm-compressor recipe to change; needs --model.")
]
Card = Annotated[
    Path, typer.Option("--card", metavar="CARD", help="card.json; advice on a RECIPE is added to it, no other.")
]
BUDGET = "A budget; without RECIPE one of them, or --max-compute and another"
CHOICES = "What may be chosen"
CHANGED = "With RECIPE and --model"
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The model of the card, to simulate with: Hub id, folder or `demo`.",
        rich_help_panel=CHANGED,
    ),
]
CASE = {
    name: options.in_panel(declared, CHANGED)
    for name, declared in options.PARAMETERS[CardSpec].items()
    if name != "card"
}


@options.flattened
def run(
    files: Annotated[CardSpec, {"card": Card, **CASE}],
    out: options.OutFile,
    recipe: Recipe = None,
    model: Model = None,
    max_bits: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=BUDGET,
            metavar="BITS",
            help="Budget of bits a quantizable weight, scales included. Without RECIPE.",
        ),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=BUDGET,
            metavar="SIZE",
            help="Budget of all weights of the checkpoint, such as 9GiB, embeddings included. Without RECIPE.",
        ),
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=BUDGET,
            metavar="NATS",
            help="KL that is acceptable, mean nats per token; without RECIPE as estimated.",
        ),
    ] = None,
    verdict: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=BUDGET,
            metavar="VERDICT",
            help="`ready` or `care`: the smallest recipe whose estimated KL lies below this limit of the policy with "
            "its whole interval. Without RECIPE.",
        ),
    ] = None,
    schemes: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CHOICES,
            metavar="SCHEMES",
            help="Choose among these alone, such as those that the GPU runs fast: names with commas, as in `report "
            "--schemes`. All that the card has prices of, but for ranges that depend on the order of samples. Without "
            "RECIPE.",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(metavar="POLICY", help="`default`, `strict`, `lenient`, or a .yaml file. Without RECIPE."),
    ] = None,
    max_compute: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=BUDGET,
            metavar="SHARE",
            help="Budget of the time of multiply-accumulates on --hardware, as a share of the unquantized model's, "
            "experts by the tokens routed to them; alone or with another budget. Without RECIPE.",
        ),
    ] = None,
    minimize: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=BUDGET,
            metavar="COST",
            help="What is kept low within a budget of KL: `bytes`, the default, or `compute`. Without RECIPE.",
        ),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CHOICES,
            metavar="MACHINE",
            help="Where the recipe is to run: what that does not run fast is not offered. `ampere`, `ada`, `hopper`, "
            "`blackwell`, `mi300`, `amx`, `arm`, or a .yaml file in the form of recipes/hardware/machines.yaml. "
            "Without RECIPE.",
        ),
    ] = None,
    as_good_as: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=BUDGET,
            metavar="WHAT",
            help="Accept the KL of a scheme in all groups, such as FP8_DYNAMIC, as the card simulated it; with RECIPE "
            "also of an alternative everywhere: `dynamic`, its default.",
        ),
    ] = None,
    moving_averages: Annotated[
        bool,
        typer.Option(
            rich_help_panel=CHOICES,
            help="Offer llm-compressor's `minmax` observer, whose ranges depend on the order of samples. With RECIPE.",
        ),
    ] = False,
    unquantized: Annotated[
        bool,
        typer.Option(
            rich_help_panel=CHOICES,
            help="Offer to leave groups unquantized, next to quantized ones, which not every engine runs.",
        ),
    ] = False,
    smoothing: Annotated[
        bool,
        typer.Option(
            rich_help_panel=CHOICES,
            help="Offer SmoothQuant to groups that read a norm; costs passes over calibration samples. With RECIPE.",
        ),
    ] = True,
    memory_budget: options.MemoryBudget = None,
    force: options.Force = False,
    resume: options.Resume = False,
) -> None:
    """The best recipe within a budget of bytes, compute or KL, from the card alone, in seconds: estimated, unverified.

    With RECIPE and --model: change as little of that recipe as a KL budget needs (other observers, smoothing, dynamic
    scales; on request moving averages, or no quantization), simulated before it is given. Exit 3 where the gate on it
    is inconclusive, but for too little text alone, which is said.
    """
    from quantaudit.common.files import check_file
    from quantaudit.errors import UsageError
    from quantaudit.model.blockwise.memory import parse_size

    check_file(out, force=force, resume=resume)
    memory = None if memory_budget is None else parse_size(memory_budget, "--memory-budget")
    from_card = [
        name
        for name, value in (
            ("--max-bits", max_bits),
            ("--max-bytes", max_bytes),
            ("--verdict", verdict),
            ("--schemes", schemes),
            ("--policy", policy),
            ("--max-compute", max_compute),
            ("--minimize", minimize),
            ("--hardware", hardware),
        )
        if value is not None
    ]
    if recipe is None and model is None:
        of_recipe = ["--moving-averages"] * moving_averages + ["--no-smoothing"] * (not smoothing)
        if memory is not None:
            of_recipe.append("--memory-budget")
        if of_recipe:
            raise UsageError("is for a RECIPE, with --model", where=of_recipe[0], hint="leave it out")

        from quantaudit.advise.budget import Budget

        size = None if max_bytes is None else parse_size(max_bytes, "--max-bytes")
        budget = Budget(
            max_bits=max_bits,
            max_bytes=size,
            max_kl=max_kl,
            as_good_as=as_good_as,
            verdict=verdict,
            max_compute=max_compute,
            minimize=minimize or "bytes",  # type: ignore[arg-type]
        )
        menu = _Menu(schemes=schemes, unquantized=unquantized, hardware=hardware)
        _allocate(files.card, budget, out, menu=menu, policy=policy or "default")
        return
    if recipe is None or model is None:
        raise UsageError(
            "RECIPE and --model belong together: a recipe is changed by what simulating it shows",
            where="quantaudit advise",
            hint="give both; or neither, for the best recipe of the schemes that the card has prices of",
        )
    if from_card:
        raise UsageError(
            "is for the card alone: its schemes, not those of a recipe, are chosen from",
            where=from_card[0],
            hint="leave RECIPE and --model out; or give --max-kl, or --as-good-as dynamic",
        )

    from quantaudit.advise.goal import Goal, Offers

    goal = Goal(max_kl=max_kl, as_good_as=as_good_as or (None if max_kl is not None else "dynamic"))
    offers = Offers(moving_averages=moving_averages, unquantized=unquantized, smoothing=smoothing)
    case = CaseSpec(recipe=recipe, model=model, **asdict(files))
    _change(case, goal, offers, out, resume=resume, memory=memory)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Menu:
    """What may be chosen, as it is asked for."""

    schemes: str | None
    unquantized: bool
    hardware: str | None


def _allocate(card: Path, budget: Budget, out: Path, *, menu: _Menu, policy: str) -> None:
    """Write the best recipe within a budget, and say what it is, and what it compares with."""
    from quantaudit.advise.allocate import allocate
    from quantaudit.advise.scheme_names import offered_schemes
    from quantaudit.card.schema import load_card
    from quantaudit.card.seal import seal_state
    from quantaudit.cli import console
    from quantaudit.common.ranks.processes import place
    from quantaudit.policy import load_policy
    from quantaudit.simulate.allocation import load_hardware

    if place().rank:  # nothing to share
        return
    rules, machine = load_policy(policy), None if menu.hardware is None else load_hardware(menu.hardware)
    read = load_card(card)
    names = None if read.simulation is None else offered_schemes(read.simulation, menu.schemes)
    console.say_seal(seal_state(read), card)

    allocation = allocate(read, budget, rules, schemes=names, unquantized=menu.unquantized, hardware=machine)

    # From here on llm-compressor, and with it torch, is needed.
    from quantaudit.cli.output.advise import show
    from quantaudit.pipeline.advise import write_allocation

    goal = budget.in_words(rules)
    allocated = write_allocation(allocation, goal, rules)
    allocated.write(out)
    show(allocated, goal, console.out, recipe=out, card=card)
    exit_unless_known(allocated.report)


def _change(case: CaseSpec, goal: Goal, offers: Offers, out: Path, *, resume: bool, memory: int | None) -> None:
    """Write the least change of a recipe that reaches a goal, and add what was simulated to the card."""
    from quantaudit.card.seal import seal_state
    from quantaudit.cli import console
    from quantaudit.common.outputs.claims import Output
    from quantaudit.common.outputs.resume import RunState
    from quantaudit.pipeline.case import read_case

    files = read_case(case)
    console.say_seal(seal_state(files.card), case.card)
    state = RunState(Output(option="--out", path=out), resume=resume, say=console.say)
    with console.shared_progress(forks=memory is None) as stages:
        # From here on torch is needed.
        from quantaudit.pipeline.advise import advise_case

        advised = advise_case(files, goal, offers, stages=stages, say=console.say, state=state, memory=memory)
        advised.write(out, case.card)
        state.done()

    from quantaudit.cli.output.advise import changes_in_words, gate_line

    advice = advised.advice
    console.out.print(console.advice_table(advice.info))
    for line in changes_in_words(advice.info, len(advice.groups)):
        console.out.print(line, highlight=False, markup=False)
    if advice.unmeasured and not offers.unquantized:
        console.say(f"left unquantized all the same, as nothing was measured of it: {', '.join(advice.unmeasured)}")
    console.say(f"wrote {out}, and the curve into {case.card}")

    from quantaudit.card.schema import load_card
    from quantaudit.gate.run import gate
    from quantaudit.policy import load_policy

    report = gate(out, load_card(case.card), load_policy("default"))
    console.out.print(gate_line(report))
    exit_unless_known(report, accepted=TOO_LITTLE_TEXT)


def exit_unless_known(report: GateReport, *, accepted: Sequence[str] = ()) -> None:
    """Advice that rests on what is not known is not done, however well it fits its budget; a gate that fails is within
    what was asked for. accepted: codes of findings that leave its verdict open, and not what was asked for.
    """
    undecided = [finding for finding in report.findings if finding.severity == "inconclusive"]
    if report.outcome == "inconclusive" and any(finding.code not in accepted for finding in undecided):
        raise typer.Exit(report.exit_code)
