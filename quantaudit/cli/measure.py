"""`quantaudit measure`: one pass over the corpus, into a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit measure demo --out smollm2.safetensors"

Reference = Annotated[
    Path | None,
    typer.Option(
        "--export-reference",
        metavar="FILE",
        help="Also write the statistics of arXiv 2605.15572, under its names (JSON).",
    ),
]


def run(
    model: options.Model,
    out: options.OutFile,
    corpus: options.Corpus = "builtin",
    samples: options.Samples = None,
    max_length: options.MaxLength = 2048,
    special_tokens: options.SpecialTokens = "auto",
    corpus_tokenizer: options.CorpusTokenizer = None,
    batch_size: options.BatchSize = 1,
    experts: options.Experts = "auto",
    attention: options.Attention = "auto",
    arithmetic: options.Arithmetic = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    seed: options.Seed = 0,
    shard: options.ShardOf = None,
    export_reference: Reference = None,
    force: options.Force = False,
) -> None:
    """Measure activation statistics at every site of a model."""
    from quantaudit.cli import console
    from quantaudit.common.files import check_file, write_text
    from quantaudit.errors import UsageError
    from quantaudit.measure.shard import parse_shard

    part = None if shard is None else parse_shard(shard)
    if part is not None and part.count > 1 and export_reference is not None:
        raise UsageError(
            "a shard's statistics are not those of the corpus",
            where="--export-reference",
            hint="leave it out, or measure without --shard",
        )
    check_file(out, force=force)
    if export_reference is not None:
        check_file(export_reference, force=force)

    from quantaudit.common.choices import find_experts
    from quantaudit.measure.profile import save_profile
    from quantaudit.pipeline.inputs import open_inputs
    from quantaudit.settings import Settings

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
        # The paper's numbers are of models as they load.
        attention="native" if attention == "auto" and export_reference is not None else attention,
        arithmetic=arithmetic,
        seed=seed,
    )
    inputs = open_inputs(settings)
    with console.progress() as stages:
        stages("starting", 0)

        # From here on torch is needed.
        from quantaudit.pipeline.run import announce, measure_subject, prepare

        subject = prepare(settings, console.say, inputs=inputs, stages=stages)
        announce(subject, stages, console.say, simulated=False, shards=part.count if part else 1)
        profile = measure_subject(subject, stages, part)
    save_profile(profile, out)
    held = profile.provenance.shards
    console.say(f"wrote {out}" + (f": {held.named()}, to be merged with the others" if held else ""))
    if export_reference is not None:
        from quantaudit.measure.paper import reference_json

        write_text(export_reference, reference_json(profile))
        console.say(f"wrote {export_reference}")
