"""`quantaudit.audit`: a model and a corpus → profile, simulation and activation card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from quantaudit.api.arguments import model_of, path_of, plain, profile_of, shown
from quantaudit.settings import Options, Settings

if TYPE_CHECKING:
    from quantaudit.measure.profile import Profile
    from quantaudit.pipeline.audit import Audit


def audit(
    model: Any = "demo",
    corpus: str | Path | None = None,
    *,
    tokenizer: Any = None,
    profile: Profile | str | Path | None = None,
    policy: str | Path = "default",
    redact_text: bool = False,
    memory_budget: str | None = None,
    progress: bool | None = None,
    **options: Unpack[Options],
) -> Audit:
    """Measure a model, predict what each scheme does to it, and judge it: `quantaudit report` without its files.

    model: Hub id, folder, .gguf file, `demo`, or a model of transformers in evaluation mode, with its tokenizer.
    corpus: `builtin` where None. profile: one measured before, to skip measuring; its text and how it was run are what
    is not given. memory_budget: as for `measure`. options: any field of `Settings`' parts. progress: None shows it in a
    terminal and a notebook. Raises a QuantauditError that names cause and remedy.

    >>> result = quantaudit.audit("demo", samples=6, max_length=64, evaluation_tokens=64)
    >>> [verdict.title for verdict in result.card.verdict.schemes[:2]]
    ['INT8 static per-tensor', 'INT8 dynamic per-token']
    """
    from quantaudit.pipeline.files import open_files
    from quantaudit.pipeline.settings_of_profile import settings_of_profile
    from quantaudit.policy import load_policy

    load_policy(str(policy))
    spec, loaded = model_of(model, tokenizer, options)
    measured = None if profile is None else profile_of(profile)
    text = None if corpus is None else str(path_of(corpus, "corpus"))
    given = plain(dict(options))
    if measured is None:
        settings = Settings.of(spec, text or "builtin", **given)
    else:
        settings = settings_of_profile(measured, spec, corpus=text, **given)
    files = open_files(settings, loaded)
    with shown(progress) as (stages, say):
        stages("starting", 0)
        from quantaudit.model.blockwise.memory import parse_size
        from quantaudit.pipeline.audit import CardOptions
        from quantaudit.pipeline.audit import audit as run

        return run(
            settings,
            files=files,
            profile=measured,
            options=CardOptions(policy=str(policy), redact_text=redact_text),
            stages=stages,
            say=say,
            memory=None if memory_budget is None else parse_size(memory_budget, "memory_budget"),
        )
