"""`quantaudit verify`: run a recipe for real, and set what comes out beside the prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit verify advised.yaml demo --card quantaudit-demo/card.json --save SmolLM2-W8A8/"


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="llm-compressor recipe.")],
    model: options.Model,
    card: Annotated[Path, typer.Option(metavar="CARD", help="card.json of this model; the result is added to it.")],
    save: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the quantized checkpoint here; discarded by default.")
    ] = None,
    profile: options.CardProfile = None,
    corpus: options.MovedCorpus = None,
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
    evaluation_tokens: options.EvaluationTokens = 4096,
    arithmetic: options.Arithmetic = "auto",
    policy: options.Policy = "default",
    device: options.Device = "auto",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
) -> None:
    """Let llm-compressor run a recipe on the card's calibration samples, and compare scales, KL and perplexity.

    Exit code 1 where the result does not agree with the prediction, or is broken; where the recipe does what cannot be
    predicted (GPTQ, AWQ, a quantized cache), 1 where the result is beyond the policy and 3 otherwise. Two models are in
    memory at a time.
    """
    import gc
    import tempfile
    from contextlib import ExitStack
    from functools import partial

    from quantaudit.cli import console
    from quantaudit.common.files import check_directory
    from quantaudit.errors import UsageError

    if save is not None:
        check_directory(save, force=force, option="--save")
        if save.resolve() == Path(model).resolve():
            raise UsageError("would overwrite the model itself", where=f"--save {save}", hint="give another folder")

    from quantaudit.card.amend import amend_card
    from quantaudit.card.schema import Card
    from quantaudit.common.outcome import EXIT_CODES
    from quantaudit.pipeline.case import open_case, read_case
    from quantaudit.policy import load_policy

    rules = load_policy(policy)
    files = read_case(
        recipe,
        model,
        card,
        profile=profile,
        corpus=corpus,
        revision=revision,
        arithmetic=arithmetic,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    with console.progress() as stages, tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        stages("starting", 0)

        # From here on torch is needed.
        from quantaudit.pipeline.run import announce_stages, load_again
        from quantaudit.simulate.cost import ONE_SHOT, RELOADING, RENDERING, verify_stages
        from quantaudit.verify.run import clear, compare, make, predict

        case = open_case(files, stages, evaluation_tokens=evaluation_tokens)
        stack.enter_context(case.subject.computed())
        told, settings, samples = files.card, files.inputs.settings, case.samples
        for change in case.resolution.unsimulated:
            console.say(f"not in the prediction: {change.modifier}: {change.reason}")
        split = case.subject.corpus.info.calibration
        evaluated = sum(len(sample.ids) for sample in samples)
        loading = sum(took for title, took in stages.took.items() if title.startswith("loading"))
        announce_stages(
            case.subject,
            stages,
            console.say,
            f"llm-compressor on {split.tokens:,} calibration tokens, and scores on {evaluated:,} evaluation tokens",
            partial(verify_stages, evaluated, split.tokens, sites=len(told.sites), loading=loading),
        )
        folder = save or Path(scratch)
        subject = case.subject
        expected = predict(subject.loaded, case.profile, subject.corpus, samples, case.resolution, recipe.stem, stages)
        clear(folder)
        stages(ONE_SHOT, 0)
        calibration = make(subject.loaded, recipe, subject.corpus.samples, folder, pipeline=pipeline)
        # Quantized in place: before two more models are loaded, this one goes, cycles and all.
        del subject, case
        gc.collect()
        stages(RELOADING, 0)
        base = load_again(settings)
        result = compare(base, folder, samples, expected, calibration, told, rules, tolerance=tolerance, stages=stages)

        def add(now: Card) -> Card:
            others = [row for row in now.verification if (row.recipe, row.pipeline) != (result.recipe, result.pipeline)]
            return now.model_copy(update={"verification": [*others, result]})

        stages(RENDERING, 0)
        amend_card(card, add)
    console.show_verification(result)
    raise typer.Exit(EXIT_CODES[result.outcome])
