"""`quantaudit gate`: whether a recipe is safe on a checkpoint, from its card alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit gate recipes/w8a8_static.yaml --card quantaudit-demo/card.json"


def run(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="llm-compressor recipe, YAML or JSON.")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(metavar="CARD", help="card.json of the model, written by `quantaudit report`.")
    ] = None,
    simulation: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Simulation of this recipe, written by `quantaudit simulate --recipe`."),
    ] = None,
    policy: options.Policy = "default",
    output: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="text, json, github, junit or sarif, to stdout.")
    ] = "text",
    require_sealed: options.RequireSealed = False,
    explain: Annotated[
        str | None, typer.Option(metavar="CODE", help="Print what a rule looks for and why, and exit.")
    ] = None,
) -> None:
    """Judge a recipe before anything is quantized: exit 0 pass, 1 fail, 2 bad recipe or input, 3 inconclusive."""
    if explain is not None:
        from quantaudit.gate.catalogue import explain as explained

        print(explained(explain))
        return

    from quantaudit.errors import UsageError
    from quantaudit.gate.formats import FORMATS

    if output != "text" and output not in FORMATS:
        raise UsageError("unknown format", where=f"--format {output}", hint=f"one of text, {', '.join(FORMATS)}")
    if recipe is None or card is None:
        missing = "RECIPE" if recipe is None else "--card"
        raise UsageError(f"{missing} is missing", where="quantaudit gate", hint=EXAMPLE.removeprefix("Example: "))

    from quantaudit.card.schema import load_card
    from quantaudit.card.seal import check_sealed
    from quantaudit.cli import console
    from quantaudit.policy import load_policy
    from quantaudit.recipe.parse import check_recipe
    from quantaudit.simulate.records import load_simulation

    check_recipe(recipe)
    rules, loaded = load_policy(policy), load_card(card)
    if require_sealed:
        check_sealed(loaded, card)
    simulated = None if simulation is None else load_simulation(simulation)

    # From here on llm-compressor, and with it torch, is needed.
    from quantaudit.gate.run import gate

    report = gate(recipe, loaded, rules, simulated)
    console.say_seal(report.seal, card)
    if output == "text":
        from quantaudit.cli.output.gate import show

        show(report, console.out)
    else:
        from quantaudit.common.printing.inert import inert, inert_json, inert_xml
        from quantaudit.common.printing.streams import write_results

        escape = {"json": inert_json, "sarif": inert_json, "junit": inert_xml}.get(output, inert)
        write_results(escape(FORMATS[output](report)))
    raise typer.Exit(report.exit_code)
