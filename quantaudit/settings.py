"""What to audit and how, checked as it is made; and settings that run a profile's samples again. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantaudit.common.choices import (
    DTYPES,
    ArithmeticChoice,
    Attention,
    Experts,
    check_device,
    check_scheme,
    find_arithmetic,
    find_experts,
    find_single,
    parse_dtype,
    parse_price_source,
)
from quantaudit.corpus.spec import pinned
from quantaudit.errors import FormatError
from quantaudit.measure.profile import Profile
from quantaudit.provenance import REDACTED, SpecialTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to audit and how. model, corpus: specs. samples: None for all, of a dataset for 512. Tokens are counts.

    single_groups: how many fused groups to simulate alone, or `all`. schemes: specs of those to simulate beside the
    report's own. recipes: llm-compressor recipes to score. Raises UsageError for a value that no option has.
    """

    model: str = "demo"
    corpus: str = "builtin"
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    samples: int | None = None
    max_length: int = 2048
    special_tokens: SpecialTokens = "auto"
    corpus_tokenizer: str | None = None
    batch_size: int = 1
    experts: Experts = "auto"
    attention: Attention = "auto"
    arithmetic: ArithmeticChoice = "auto"
    evaluation_tokens: int = 4096
    score: str = "auto"
    single_groups: str = "0"
    schemes: tuple[str, ...] = ()
    recipes: tuple[Path, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_device(self.device)
        parse_dtype(self.dtype)
        find_experts(self.experts)
        find_arithmetic(self.arithmetic)
        parse_price_source(self.score)
        find_single(self.single_groups)
        for scheme in self.schemes:
            check_scheme(scheme)


def repeat(profile: Profile, model: str, *, corpus: str | None = None, **changed: Any) -> Settings:
    """Settings under which a profile's samples are drawn again. corpus: where its corpus lies now, if it has moved.

    changed: what differs; None, and a dtype of `auto`, stand for the profile's own.
    """
    text, measured = profile.provenance.corpus, profile.provenance.model
    if text.redacted and text.spec == REDACTED and corpus is None:
        raise FormatError(
            "the profile's text is redacted: it does not say where its corpus lies", hint="give it with --corpus"
        )
    if changed.get("dtype", "auto") == "auto":
        changed["dtype"] = measured.dtype if measured.dtype in DTYPES else "auto"
    own: dict[str, Any] = {
        "corpus": corpus or pinned(text.spec, text.revision),
        "samples": text.samples,
        "max_length": text.max_length,
        "special_tokens": text.special_tokens,
        "corpus_tokenizer": text.tokenizer,
        "experts": profile.experts or "routed",
        "arithmetic": own_arithmetic(profile),
        "dtype": profile.provenance.model.dtype,
        "seed": text.seed,
        "revision": measured.revision if model == measured.spec else None,
    }
    return Settings(model=model, **own | {key: value for key, value in changed.items() if value is not None})


def own_arithmetic(profile: Profile) -> ArithmeticChoice:
    """What a processor measured with; `auto` for what was measured elsewhere."""
    environment = profile.provenance.environment
    return environment.arithmetic if environment.device == "cpu" else "auto"
