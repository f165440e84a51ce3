"""`quantaudit measure`: one pass over the corpus, into a profile."""

from __future__ import annotations

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit measure demo --out smollm2.safetensors"


def run(
    model: options.Model,
    out: options.OutFile,
    corpus: options.Corpus = "builtin",
    samples: options.Samples = None,
    max_length: options.MaxLength = 2048,
    batch_size: options.BatchSize = 1,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    seed: options.Seed = 0,
    force: options.Force = False,
) -> None:
    """Measure activation statistics at every site of a model."""
    from quantaudit.cli import console
    from quantaudit.files import check_file

    check_file(out, force=force)

    from quantaudit.pipeline import Settings, measure_subject, prepare
    from quantaudit.profile import save_profile

    settings = Settings(
        model=model,
        corpus=corpus,
        revision=revision,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        samples=samples,
        max_length=max_length,
        batch_size=batch_size,
        seed=seed,
    )
    subject = prepare(settings, console.say)
    with console.progress() as stages:
        profile = measure_subject(subject, stages)
    save_profile(profile, out)
    console.say(f"wrote {out}")
