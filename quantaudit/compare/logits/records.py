"""What a comparison of checkpoints says: as written to JSON, and read by every other form of it. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from quantaudit.common.outcome import EXIT_CODES, Outcome
from quantaudit.compare.report import Caveat, Decision
from quantaudit.provenance import Arithmetic, EnvironmentInfo, Row
from quantaudit.quantities import Count, Magnitude, Number, Perplexity
from quantaudit.simulate.records import DomainScore, TokenSpread

SCHEMA_VERSION = "1.0"
"""History: 1.0 first edition."""


class ComparedModel(Row):
    """One checkpoint, as it was loaded. where: how it was given."""

    name: str
    label: str = Field(description="the name, and where it lies if others have the name too")
    where: str
    architecture: str
    parameters: Count
    dtype: str
    arithmetic: Arithmetic
    width: Count = Field(description="logits of a token, which may be more than its tokenizer has tokens")
    fingerprint: str
    quantization: str | None = Field(description="how its weights are quantized, where config.json says that they are")
    notes: list[str] = Field(description="what loading changed, such as dequantization")


class EvaluatedText(Row):
    """The held-out tokens that all models ran on."""

    corpus: str
    corpus_sha256: str
    seed: int
    max_length: Count
    special_tokens: str
    tokens: Count
    samples: list[str]
    left_out: Count = Field(description="evaluation samples whose text calibrates too, or repeats that of another one")
    unigram_perplexity: Perplexity = Field(description="of guessing these tokens without context, by their frequencies")


class Estimate(Row):
    """A mean over tokens with its interval over samples; the interval is null where there are fewer than two."""

    value: Number
    stderr: Magnitude
    low: Number
    high: Number


class Divergence(Row):
    """KL in one direction, nats per token."""

    mean: Estimate
    by_token: TokenSpread | None = Field(description="null where some KL is no finite number")


class Part(Row):
    """Some of the tokens, such as those of one domain."""

    name: str
    score: DomainScore = Field(description="of the other model against the base")
    reverse_kl: Magnitude = Field(description="KL(other‖base), nats per token")
    reverse_kl_stderr: Magnitude


class Pair(Row):
    """One model against the base. subject: its index among the models."""

    subject: Count
    compared: Count = Field(description="how many of the first logits were compared; of all, where widths are equal")
    kl: Divergence = Field(description="KL(base‖other)")
    reverse: Divergence = Field(description="KL(other‖base); its confident tokens are those of the other")
    top1: Estimate = Field(description="share of positions whose most likely token is the same")
    perplexity: Perplexity
    perplexity_ratio: Estimate = Field(description="over the base's; interval of the mean difference of losses")
    rounding: bool | None = Field(
        description="whether the KL is at most that of the least change that the base's dtype can hold"
    )
    confidence: list[Part] = Field(description="by the base's probability of its most likely token")
    domains: list[Part]


class LogitsComparison(Row):
    """Models on one text, all against the first."""

    schema_version: str = SCHEMA_VERSION
    quantaudit_version: str
    level: float = Field(description="confidence level of intervals")
    environment: EnvironmentInfo = Field(description="of the base's run; other models differ in what `models` says")
    text: EvaluatedText
    models: list[ComparedModel] = Field(description="the first is the base of all pairs")
    perplexity: Perplexity = Field(description="of the base")
    rounding_floor: Magnitude = Field(
        description="KL of the least change at the base's first block, by rounding in its dtype alone"
    )
    caveats: list[Caveat]
    pairs: list[Pair]
    decisions: list[Decision]
    outcome: Outcome | None = Field(description="null where no limit was given")

    @property
    def exit_code(self) -> int:
        """0 within all limits or without any, 1 beyond one, 3 where that cannot be decided."""
        return 0 if self.outcome is None else EXIT_CODES[self.outcome]
