"""The settings that a profile was measured under, so that its samples can be run again."""

from __future__ import annotations

from typing import Unpack, cast

from quantaudit.common.choices import DTYPES, ArithmeticChoice
from quantaudit.corpus.spec import pinned
from quantaudit.errors import FormatError
from quantaudit.measure.profile import Profile
from quantaudit.provenance import REDACTED
from quantaudit.settings import Options, Settings


def settings_of_profile(
    profile: Profile, model: str, *, corpus: str | None = None, **changed: Unpack[Options]
) -> Settings:
    """Settings under which a profile's samples are drawn again. corpus: where it lies now, if it has moved.

    changed: options that differ; a dtype or arithmetic of `auto`, and None, stand for what the profile records. Raises
    FormatError where the profile does not say where its text lies.
    """
    text, measured = profile.provenance.corpus, profile.provenance.model
    if text.redacted and text.spec == REDACTED and corpus is None:
        raise FormatError(
            "the profile's text is redacted: it does not say where its corpus lies", hint="give it with --corpus"
        )
    recorded = Settings.of(
        model=model,
        corpus=corpus or pinned(text.spec, text.revision),
        samples=text.samples,
        max_length=text.max_length,
        special_tokens=text.special_tokens,
        corpus_tokenizer=text.tokenizer,
        experts=profile.experts or "routed",
        arithmetic=recorded_arithmetic(profile),
        dtype=measured.dtype if measured.dtype in DTYPES else "auto",
        seed=text.seed,
        revision=measured.revision if model == measured.spec else None,
    )
    inherited = {("dtype", "auto"), ("arithmetic", "auto")}
    given = {key: value for key, value in changed.items() if value is not None and (key, value) not in inherited}
    return recorded.changed(**cast("Options", given))


def recorded_arithmetic(profile: Profile) -> ArithmeticChoice:
    """What a processor measured with; `auto` for what was measured elsewhere."""
    environment = profile.provenance.environment
    return environment.arithmetic if environment.device == "cpu" else "auto"
