"""Records of what was predicted: rows of `card.json` and of a simulation file. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from quantaudit.common.reading.json_document import check_json
from quantaudit.common.reading.regular_files import CARD_BYTES, read_text
from quantaudit.errors import FormatError
from quantaudit.provenance import Arithmetic, Row, explain
from quantaudit.quantities import Correlation, Count, Magnitude, Number, Perplexity, Positive, Ratio, Share

Outcome = Literal[
    "damage", "price", "kl", "sqnr_db", "bulk_sqnr_db", "relative_mae", "zeroed_fraction", "effective_levels"
]
PriceSource = Literal["gradient", "damage"]
Cause = Literal["outlier channel", "massive token", "either", "neither"]
Predictor = Literal["amax", "peak_over_rms", "kurtosis"]
LEAST_CAP, PARTS = 256, 16
"""Of one evaluation sample at most so many tokens are taken, or that part of all that are asked for, if it is more."""
RECIPES_SHOWN = 6
"""Recipes that a simulation's `repr` names."""


class ScaleRow(Row):
    """Quantization parameters of one tensor: x ≈ (q − zero_point) · scale."""

    site: str
    group: str
    scheme: str
    observer: str
    min: Number
    max: Number
    scale: Magnitude
    zero_point: int
    order_spread: Ratio = Field(
        default=None,
        description="of a moving average: largest over smallest scale in 100 orders of the calibration samples",
    )


class SchemeInfo(Row):
    """A quantization scheme as compressed_tensors describes it."""

    name: str
    title: str
    weights: dict[str, Any] | None
    input_activations: dict[str, Any] | None
    observer: str | None


class UnjudgedScheme(Row):
    """A scheme that people ship and that was not simulated, with the reason."""

    name: str
    title: str
    reason: str


class TensorErrorRow(Row):
    """What static quantization does to one tensor, on the evaluation split, from its exact distribution."""

    site: str
    group: str
    scheme: str
    observer: str
    scale: Magnitude
    zero_point: int
    sqnr_db: Number
    bulk_sqnr_db: Number
    relative_mae: Magnitude
    zeroed_fraction: Share
    effective_levels: Magnitude
    clip_rate: Share


class GroupRow(Row):
    """What one scheme does to the model when this fused group alone is quantized."""

    group: str
    projection: str
    members: list[str]
    layer: Count | None
    scheme: str
    damage: Magnitude
    damage_weights_only: Magnitude
    price: Magnitude = Field(description="estimated logits KL in nats per token; null where it was not priced")
    price_simulated: bool = Field(
        default=False,
        description="whether the price is `kl` less the rounding floor at its depth, as the labels that gradients were "
        "drawn from left their estimate to chance",
    )
    price_low: Magnitude = Field(default=None, description="95 % interval of a price from damage; null for the others")
    price_high: Magnitude = None
    kl: Magnitude = Field(
        default=None, description="logits KL in nats per token, simulated with this group alone; null where it was not"
    )
    kl_stderr: Magnitude = Field(default=None, description="standard error of `kl` over samples")
    sampled: bool = Field(
        default=False,
        description="whether it is one of the groups, evenly spaced in the ranks of damage, that correlations with "
        "`kl` rest on; other groups have a `kl` because prices needed it",
    )


class GranularityRow(Row):
    """INT8 at one input with scales of three granularities: mean over tokens of ‖Δx‖²/‖x‖², evaluation split."""

    group: str
    layer: Count | None
    per_tensor: Magnitude = Field(description="one scale, the calibration split's absolute maximum")
    per_token: Magnitude = Field(description="a scale for each token, found at run time")
    per_channel: Magnitude = Field(description="a scale for each channel, its maximum on the calibration split")
    cause: Cause = Field(
        description="what makes one scale too coarse: which finer scales leave less than a quarter of the error"
    )


class DomainScore(Row):
    """Agreement with the unquantized model on some of the evaluation tokens, such as one domain's."""

    tokens: Count
    kl: Magnitude
    top1: Share
    samples: Count | None = None
    kl_stderr: Magnitude = Field(default=None, description="standard error over samples; null for a single one")
    top1_stderr: Magnitude = Field(default=None, description="the same of top1")
    perplexity: Perplexity = None
    perplexity_base: Perplexity = None


class TokenSpread(Row):
    """How a KL is spread over tokens, nats; and how often the original's own clear choices change."""

    median: Magnitude
    p90: Magnitude = Field(description="nine of ten tokens have at most this KL")
    p99: Magnitude
    max: Magnitude
    confident: Count = Field(description="tokens whose most likely successor the original gives one half or more")
    flipped: Share = Field(description="share of these whose most likely successor changes; null without any")

    @model_validator(mode="after")
    def _rises(self) -> TokenSpread:
        known = [value for value in (self.median, self.p90, self.p99, self.max) if value is not None]
        if known != sorted(known):
            raise ValueError("quantiles of the KL over tokens that do not rise")
        return self


class RecipeRow(Row):
    """The whole model under one recipe, on the evaluation tokens."""

    name: str
    title: str
    kl: Magnitude = Field(description="mean KL(base‖quantized) of the logits, nats per token")
    kl_stderr: Magnitude = Field(description="standard error over samples")
    kl_estimate: Magnitude = Field(
        default=None, description="KL estimated from the groups' prices, without this recipe's own simulation"
    )
    by_token: TokenSpread | None = Field(default=None, description="null in older files, and where a KL is no number")
    top1: Share = Field(description="share of positions whose most likely token is unchanged")
    top1_stderr: Magnitude = Field(
        default=None, description="standard error over samples; null for a single one, and in files without it"
    )
    perplexity: Perplexity
    perplexity_base: Perplexity
    tokens: Count
    samples: Count
    nonfinite: bool
    groups: Count = Field(description="fused groups that the recipe quantizes")
    assistant: DomainScore | None = Field(
        default=None, description="only positions whose next token is the assistant's, over all chats; null without any"
    )
    assistant_domains: dict[str, DomainScore] = Field(default={}, description="the same by domain")
    digest: str | None = Field(
        default=None, description="identity of which modules are quantized and how; equal recipes have equal digests"
    )
    domains: dict[str, DomainScore]
    approximate: list[str] = Field(default=[], description="what of the recipe is simulated nearly, not exactly")
    unsimulated: list[str] = Field(default=[], description="what of the recipe is not in these numbers")
    propagation: list[Magnitude] = Field(
        default=[],
        description="by layer: mean over tokens of ‖Δh‖²/‖h‖² at the block's output, everything before it quantized",
    )


class Evaluation(Row):
    """The tokens on which damage and whole-model scores were taken."""

    tokens: Count
    samples: list[str]
    max_tokens_per_sample: Count
    left_out: Count | None = Field(
        default=None,
        description="evaluation samples that were not taken because their text calibrates too, or repeats that of "
        "another one; null in older files",
    )
    overlapping: Count | None = Field(
        default=None,
        description="samples taken although their text calibrates too, as there were no others; null in older files",
    )
    arithmetic: str = Field(description="dtype in which quantization was simulated")
    products: Arithmetic = Field(
        default="native",
        description="how products of that dtype were computed: by the device's own kernels, or in float32 and rounded "
        "once",
    )
    priced: bool = Field(default=False, description="whether fused groups have prices")
    unigram_perplexity: Perplexity = Field(
        default=None,
        description="perplexity of guessing these tokens without context, from the corpus' own token frequencies",
    )
    note: str | None = Field(
        default=None, description="why prices come from no backward pass although one was asked for"
    )
    price_source: PriceSource | None = Field(
        default=None, description="source of the prices: backward passes, or block damage through a fitted curve"
    )
    draws: Positive | None = Field(
        default=None,
        description="label draws, and so backward passes, for each sample that prices are averaged over; null where "
        "they come from no backward pass, and in older files",
    )
    rounding_floor: Magnitude = Field(
        default=None, description="KL of the least change at the first block, by rounding in the model's dtype alone"
    )

    @property
    def budget(self) -> int:
        """Evaluation tokens to ask for, so that the same ones are taken of each sample again."""
        capped = self.max_tokens_per_sample * PARTS if self.max_tokens_per_sample > LEAST_CAP else 0
        return max(self.tokens, capped)


class Simulation(Row):
    """What quantizing would do: tensor by tensor, group by group, and to the whole model."""

    fingerprint: str = Field(description="of the weights that were simulated, as under a card's `model`")
    corpus_sha256: str = Field(description="of the corpus whose calibration split gave the ranges")
    profile_sha256: str | None = Field(
        default=None, description="digest of the profile that gave the ranges; null in older files"
    )
    evaluation: Evaluation
    schemes: list[SchemeInfo]
    sites: list[TensorErrorRow]
    groups: list[GroupRow]
    recipes: list[RecipeRow]
    granularity: list[GranularityRow] = Field(default=[], description="by fused group inside the decoder blocks")
    not_judged: list[UnjudgedScheme] = Field(default=[], description="standard schemes that do not fit the model")

    @model_validator(mode="after")
    def _agrees(self) -> Simulation:
        problems = [
            *repeated("schemes", (row.name for row in self.schemes)),
            *repeated("recipes", (row.name for row in self.recipes)),
            *repeated("groups", (f"{row.group} under {row.scheme}" for row in self.groups)),
            *repeated("sites", (f"{row.site} under {row.scheme} ({row.observer})" for row in self.sites)),
            *self._of_unknown_schemes(),
        ]
        if problems:
            raise ValueError("; ".join(problems[:5]))
        return self

    def with_recipe(self, row: RecipeRow, name: str) -> Simulation:
        """With the score of a recipe, for a gate to find by its digest, in place of another of its name."""
        others = self.without_recipe(name).recipes
        return self.model_copy(update={"recipes": [*others, row.model_copy(update={"name": name})]})

    def without_recipe(self, name: str) -> Simulation:
        """Without the score of this name."""
        return self.model_copy(update={"recipes": [row for row in self.recipes if row.name != name]})

    def _of_unknown_schemes(self) -> Iterator[str]:
        names = {scheme.name for scheme in self.schemes}
        unknown = next((row for row in self.groups if row.scheme not in names), None)
        if unknown is not None:
            yield f"groups: {unknown.group} is under a scheme that is not among the schemes, {unknown.scheme}"

    def __repr__(self) -> str:
        """One line: the KL of the first recipes, nats per token."""
        scores = [
            f"{row.title[:40]!r} {'no finite KL' if row.kl is None else f'KL {row.kl:.3g}'}"
            for row in self.recipes[:RECIPES_SHOWN]
        ]
        more = ["…"] if len(self.recipes) > RECIPES_SHOWN else []
        groups = len({row.group for row in self.groups})
        return (
            f"Simulation({len(self.schemes)} schemes, {groups:,} fused groups, {self.evaluation.tokens:,} tokens: "
            f"{', '.join(scores + more)})"
        )

    __str__ = __repr__

    def __rich_repr__(self) -> Iterator[str]:
        """As little for Rich, which would unfold every row."""
        yield repr(self)


def repeated(where: str, names: Iterable[str]) -> Iterator[str]:
    """That the rows of a table are not each of something else, with the first that is there twice."""
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        yield f"{where}: {twice} is there twice"


class CorrelationRow(Row):
    """Rank agreement of the peak, or another statistic, with one error, with 95 % bootstrap intervals."""

    scheme: str
    scope: str = Field(description="'all', 'partial' (within projections, taken together) or one projection")
    predictor: Predictor
    outcome: Outcome
    n: Count
    spearman: Correlation
    spearman_low: Correlation
    spearman_high: Correlation
    kendall: Correlation
    kendall_low: Correlation
    kendall_high: Correlation
    reading: str


def load_simulation(path: Path) -> Simulation:
    """A simulation file. Raises FormatError when it is missing, not JSON, or no simulation of this version."""
    try:
        text = read_text(path, CARD_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot read the simulation: {error}", where=str(path)) from error
    try:
        check_json(text)
        return Simulation.model_validate_json(text)
    except ValidationError as error:
        raise FormatError(
            f"not a simulation: {explain(error)}", where=str(path), hint="make one with `quantaudit simulate`"
        ) from error
    except ValueError as error:
        raise FormatError(
            f"not a simulation: {error}", where=str(path), hint="make one with `quantaudit simulate`"
        ) from error
