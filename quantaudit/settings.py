"""What to audit and how: parts, each checked as it is made, whose defaults options and functions read. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack, get_args

from quantaudit.common.choices import (
    ArithmeticChoice,
    Attention,
    Experts,
    SpecialTokens,
    check_choice,
    check_count,
    check_device,
    check_names,
    check_scheme,
    check_text,
    find_arithmetic,
    find_experts,
    find_single,
    parse_dtype,
    parse_price_source,
    parse_scheme_set,
)
from quantaudit.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A model and how it is run. model: Hub id, folder, .gguf file, or `demo`. Raises UsageError for unknown values."""

    model: str = "demo"
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    arithmetic: ArithmeticChoice = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        check_text("model", self.model)
        check_device(self.device)
        parse_dtype(self.dtype)
        find_arithmetic(self.arithmetic)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSpec:
    """The text that is run, and how it becomes token ids. corpus: `builtin`, a file, or a dataset and a part of it.

    samples: None for all of a file, and for 512 of a dataset. max_length: tokens that a sample is cut to. seed: of the
    split into calibration and evaluation samples, and of a dataset's shuffle.
    """

    corpus: str = "builtin"
    samples: int | None = None
    max_length: int = 2048
    special_tokens: SpecialTokens = "auto"
    corpus_tokenizer: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_text("corpus", self.corpus)
        if self.samples is not None:
            check_count("samples", self.samples, 2)
        check_count("max-length", self.max_length, 2)
        check_count("seed", self.seed, 0)
        check_choice("special-tokens", self.special_tokens, get_args(SpecialTokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOptions:
    """How samples are run while they are measured. Raises UsageError for unknown values.

    batch_size: samples in a forward pass; batch_tokens: instead, as many as have so many tokens, padding included.
    """

    batch_size: int = 1
    batch_tokens: int | None = None
    experts: Experts = "auto"
    attention: Attention = "auto"

    def __post_init__(self) -> None:
        check_count("batch-size", self.batch_size, 1)
        if self.batch_tokens is not None:
            check_count("batch-tokens", self.batch_tokens, 1)
            if self.batch_size != 1:
                raise UsageError(
                    "says how large batches are, and so does --batch-size", where="--batch-tokens", hint="give one"
                )
        check_choice("attention", self.attention, get_args(Attention))
        find_experts(self.experts)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateOptions:
    """What is simulated. evaluation_tokens: that predictions are taken on. score: where prices come from.

    single_groups: how many fused groups are simulated alone, or `all`. scheme_set: the schemes to simulate, `standard`,
    `int8`, or names with commas; schemes: those in addition. recipes: llm-compressor recipes to score. Raises
    UsageError for unknown values.
    """

    evaluation_tokens: int = 4096
    score: str = "auto"
    single_groups: str = "0"
    scheme_set: str = "standard"
    schemes: tuple[str, ...] = ()
    recipes: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        check_count("evaluation-tokens", self.evaluation_tokens, 16)
        check_names("scheme", self.schemes, str)
        check_names("recipe", self.recipes, Path)
        parse_price_source(self.score)
        find_single(self.single_groups)
        parse_scheme_set(self.scheme_set)
        for scheme in self.schemes:
            check_scheme(scheme)


class Options(TypedDict, total=False):
    """Every setting by its name, apart from model and corpus: the fields of all four parts. A test holds them equal."""

    revision: str | None
    device: str
    dtype: str
    arithmetic: ArithmeticChoice
    trust_remote_code: bool
    samples: int | None
    max_length: int
    special_tokens: SpecialTokens
    corpus_tokenizer: str | None
    seed: int
    batch_size: int
    batch_tokens: int | None
    experts: Experts
    attention: Attention
    evaluation_tokens: int
    score: str
    single_groups: str
    scheme_set: str
    schemes: tuple[str, ...]
    recipes: tuple[Path, ...]


PARTS: dict[str, type[Any]] = {
    "model": ModelSpec,
    "corpus": CorpusSpec,
    "measure": MeasureOptions,
    "simulate": SimulateOptions,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to audit and how."""

    model: ModelSpec = field(default_factory=ModelSpec)
    corpus: CorpusSpec = field(default_factory=CorpusSpec)
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    simulate: SimulateOptions = field(default_factory=SimulateOptions)

    @classmethod
    def of(cls, model: str = "demo", corpus: str = "builtin", **options: Unpack[Options]) -> Settings:
        """Settings from options by name, whichever part they belong to. Raises UsageError for an unknown one."""
        return cls(model=ModelSpec(model=model), corpus=CorpusSpec(corpus=corpus)).changed(**options)

    def changed(self, **options: Unpack[Options]) -> Settings:
        """These settings with some options replaced. Raises UsageError for an unknown one."""
        rest: dict[str, Any] = dict(options)
        parts: dict[str, Any] = {}
        for name, part in PARTS.items():
            chosen = {item.name: rest.pop(item.name) for item in fields(part) if item.name in rest}
            parts[name] = replace(getattr(self, name), **chosen)
        if rest:
            raise UsageError(
                "unknown option", where=", ".join(rest), hint=f"one of {', '.join(Options.__annotations__)}"
            )
        return Settings(**parts)


class CaseOptions(TypedDict, total=False):
    """The fields of a `CaseSpec` that have defaults, by their names."""

    model: str | Path | None
    profile: str | Path | None
    corpus: str | None
    evaluation_tokens: int
    arithmetic: ArithmeticChoice
    device: str
    revision: str | None
    trust_remote_code: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CardSpec:
    """Where a card and its profile lie, and how its model is run as it was measured.

    profile: in the card's folder by default. corpus: only where it has moved. evaluation_tokens: that predictions are
    taken on; None for those that the card was simulated on.
    """

    card: Path
    profile: Path | None = None
    corpus: str | None = None
    evaluation_tokens: int | None = None
    arithmetic: ArithmeticChoice = "auto"
    device: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.evaluation_tokens is not None:
            check_count("evaluation-tokens", self.evaluation_tokens, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSpec(CardSpec):
    """Where the parts of a case lie. model: spec of the card's model."""

    recipe: Path
    model: str
