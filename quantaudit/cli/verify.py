"""`quantaudit verify`: run a recipe for real, and compare what comes out with the prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from quantaudit.cli import options
from quantaudit.settings import CaseSpec

EXAMPLE = "Example: quantaudit verify advised.yaml demo --card quantaudit-demo/card.json --save SmolLM2-W8A8/"


@options.flattened
def run(
    case: CaseSpec,
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the quantized checkpoint here; discarded by default.")
    ] = None,
    pipeline: Annotated[
        Literal["basic", "sequential", "independent"],
        typer.Option(
            help="llm-compressor's calibration pipeline: basic runs the model as it was measured; sequential fits "
            "where the whole model does not.",
        ),
    ] = "basic",
    tolerance: Annotated[
        float, typer.Option(metavar="SHARE", min=0.0, help="Relative difference of the KL that still agrees.")
    ] = 0.05,
    policy: options.Policy = "default",
    force: options.Force = False,
) -> None:
    """Let llm-compressor run a recipe on the card's calibration samples, and compare scales, KL and perplexity.

    Exit code 1 where the result does not agree with the prediction, or is broken; where the recipe does what cannot be
    predicted (GPTQ, AWQ, a quantized cache), 1 where the result is beyond the policy and 3 otherwise. Two models are in
    memory at a time.
    """
    from quantaudit.cli import console
    from quantaudit.common.files import check_directory

    if save is not None:
        check_directory(save, force=force, option="--save")

    from quantaudit.card.seal import seal_state
    from quantaudit.common.outcome import EXIT_CODES
    from quantaudit.pipeline.case import read_case
    from quantaudit.policy import load_policy

    load_policy(policy)
    files = read_case(case)
    console.say_seal(seal_state(files.card), case.card)
    with console.progress() as stages:
        stages("starting", 0)

        # From here on torch is needed.
        from quantaudit.pipeline.verify import verify_case
        from quantaudit.verify.run import VerifyOptions

        chosen = VerifyOptions(save=save, pipeline=pipeline, tolerance=tolerance)
        result = verify_case(files, chosen, policy=policy, stages=stages, say=console.say)
    console.show_verification(result)
    raise typer.Exit(EXIT_CODES[result.outcome])
