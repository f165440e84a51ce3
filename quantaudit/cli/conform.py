"""`quantaudit conform`: a quantized artifact that exists already, against the card of the model it was made from."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit conform Llama-3.2-1B-W8A8/ --card quantaudit-llama/card.json"


class Format(StrEnum):
    """How the result is written."""

    TEXT = "text"
    JSON = "json"


def run(
    artifact: Annotated[
        Path,
        typer.Argument(
            metavar="ARTIFACT", help="Folder saved by llm-compressor or optimum-quanto, or an OpenVINO model (.xml)."
        ),
    ],
    card: Annotated[Path, typer.Option(metavar="CARD", help="card.json of the unquantized model.")],
    policy: Annotated[
        str, typer.Option(metavar="POLICY", help="Name of a shipped policy, or a .yaml file.")
    ] = "default",
    output: Annotated[Format, typer.Option("--format", help="text, or json for machines.")] = Format.TEXT,
    require_sealed: options.RequireSealed = False,
) -> None:
    """Check a quantized model: all that its configuration calls for, and ranges against what was measured."""
    from quantaudit.card.schema import load_card
    from quantaudit.card.seal import check_sealed
    from quantaudit.cli import console
    from quantaudit.errors import ModelError
    from quantaudit.policy import load_policy

    if not artifact.exists():
        raise ModelError(
            "no such artifact",
            where=str(artifact),
            hint="give a folder with a quantized model, or an OpenVINO model (.xml)",
        )
    rules, loaded = load_policy(policy), load_card(card)
    if require_sealed:
        check_sealed(loaded, card)

    # From here on torch is needed.
    from quantaudit.cli.output import conform as conform_text
    from quantaudit.common.outcome import EXIT_CODES
    from quantaudit.common.printing.inert import inert_json
    from quantaudit.common.printing.streams import write_results
    from quantaudit.conform.artifacts.read import read_artifact
    from quantaudit.conform.run import conform

    result = conform(read_artifact(artifact, loaded.model.modules), loaded, rules)
    console.say_seal(result.seal, card)
    if output is Format.JSON:
        write_results(inert_json(result.model_dump_json(indent=1)) + "\n")
    else:
        conform_text.show(result)
    raise typer.Exit(EXIT_CODES[result.outcome])
