"""`quantaudit report`: the whole audit, from checkpoint to activation card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit report Qwen/Qwen2.5-1.5B-Instruct --out card/"


def run(
    model: options.Model = "demo",
    corpus: options.Corpus = "builtin",
    profile: options.ProfileFile = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the card; quantaudit-<model>/ by default.")
    ] = None,
    samples: options.Samples = None,
    max_length: options.MaxLength = 2048,
    special_tokens: options.SpecialTokens = "auto",
    corpus_tokenizer: options.CorpusTokenizer = None,
    batch_size: options.BatchSize = 1,
    experts: options.Experts = "auto",
    attention: options.Attention = "auto",
    arithmetic: options.Arithmetic = "auto",
    evaluation_tokens: options.EvaluationTokens = 4096,
    score: options.Score = "auto",
    single_groups: options.SingleGroups = "0",
    recipe: options.Recipes = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    policy: options.Policy = "default",
    seed: options.Seed = 0,
    redact_text: Annotated[
        bool,
        typer.Option(
            "--redact-text",
            help="Keep out of the card and its profile all from which "
            "text could be rebuilt: tokens, their ids and positions, names of samples, domains and files.",
        ),
    ] = False,
    template_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Templates that replace the shipped ones, file by file.")
    ] = None,
    force: options.Force = False,
) -> None:
    """Measure a checkpoint, predict what INT8 does to it, and write its activation card."""
    from quantaudit.cli import console
    from quantaudit.common.files import check_directory

    folder = out or default_folder(model)
    check_directory(folder, force=force)

    from quantaudit.card.render import write_card
    from quantaudit.card.templates import check_templates
    from quantaudit.common.choices import find_experts
    from quantaudit.measure.profile import load_profile, save_profile
    from quantaudit.pipeline.inputs import open_inputs
    from quantaudit.policy import load_policy
    from quantaudit.settings import Settings

    load_policy(policy)
    if template_dir is not None:
        check_templates(template_dir)
    settings = Settings(
        model=model,
        corpus=corpus,
        revision=revision,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        samples=samples,
        max_length=max_length,
        special_tokens=special_tokens,
        corpus_tokenizer=corpus_tokenizer,
        batch_size=batch_size,
        experts=find_experts(experts),
        attention=attention,
        evaluation_tokens=evaluation_tokens,
        score=score,
        single_groups=single_groups,
        recipes=tuple(recipe or ()),
        arithmetic=arithmetic,
        seed=seed,
    )
    inputs = open_inputs(settings)
    measured = load_profile(profile) if profile else None
    with console.progress() as stages:
        stages("starting", 0)

        # From here on torch is needed.
        from quantaudit.pipeline.run import audit
        from quantaudit.quant.export import save_scales

        result = audit(
            settings,
            inputs=inputs,
            profile=measured,
            policy=policy,
            redact_text=redact_text,
            stages=stages,
            say=console.say,
        )
        written = write_card(result.card, folder, template_dir)
        save_profile(result.profile, folder / "profile.safetensors")
        save_scales(result.profile, folder / "scales.safetensors")
    console.show_verdict(result.card)
    console.say(f"open {next(path for path in written if path.suffix == '.html')}")


def default_folder(model: str) -> Path:
    """`quantaudit-<model>`, with the last part of a Hub id or path."""
    return Path(f"quantaudit-{Path(model).name.removesuffix('.gguf') or 'model'}")
