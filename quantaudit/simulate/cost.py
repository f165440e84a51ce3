"""What a job will take: forward passes, counted where they can be and measured else, and seconds, from a timed probe.

Pure: it knows no model and no clock. Weights are in bare forward passes over the same tokens, without logits unless it
says so, and stand here alone. RENDERED, MENU, CHOICES, ROUNDS and ONESHOT are guesses; `benchmarks/estimate.py` sets
what is expected of a report against what it takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from quantaudit.common.progress import Stage
from quantaudit.simulate.sensitivity.draws import draws_for
from quantaudit.simulate.sensitivity.from_damage import ANCHORS
from quantaudit.simulate.sensitivity.uncertain import MOST as UNCERTAIN

if TYPE_CHECKING:
    from quantaudit.quant.schemes import Scheme

FLOOR = 2.6
"""The rounding floor: the model unmodified, and perturbed at three depths, each from that block on."""
FLOOR_UNSKIPPED = 4.0
"""The same where all passes run side by side, from the first block on."""
BACKWARD = 2.0
"""Gradients behind the blocks, for each draw of labels: a backward pass that computes the forward pass again. Measured,
as all but counts here: docs/prediction.md."""
CLEAN = 1.0
"""A clean run of every block."""
REPLAYED = 1.5
"""All groups replayed under one scheme, each from where it begins."""
PRICED = 1.4
"""The same for prices alone, each group up to its residual branch."""
MIXTURES = 2
"""Recipes of two schemes that every simulation scores too."""
SCORED = 1.3
"""The whole model under one recipe, with logits."""
SCORED_OTHER = 2.0
"""The same under a scheme that is priced alone: FP8, FP4 and groups round more slowly than INT8."""
RENDERED, RENDERED_SITE = 3.0, 0.03
"""Seconds of card, charts and files, and of every site on them: of one thread of a common machine."""
FIVE_MINUTES = 300.0
MENU = 6.0
"""Replays of a fused group while it is priced for advice: one for each option that is offered."""
CHOICES = 7
"""Whole-model simulations of advice before anything is chosen: the recipe, its references, and the curve."""
ROUNDS = 2
"""How often what is chosen is simulated, and made again where it breaks its budget."""
ONESHOT = 1.0
"""llm-compressor's calibration for one modifier that rounds to nearest, of a pass with every site tapped; GPTQ and its
like take many times as long."""

MEASURING, GRADIENTS, REPLAYING = "measuring", "taking gradients", "replaying blocks"
ROUNDING, SINGLE, SCORING = "measuring the rounding floor", "simulating single groups", "scoring the whole model"
RENDERING = "writing the card"
RATIOS = "taking ratios of tokens"
SMOOTHING, PRICING, CHOOSING = "calibrating smoothed inputs", "pricing the menu", "simulating choices"
PREDICTING, AGAIN, ONE_SHOT = "predicting", "calibrating again", "running llm-compressor"
RELOADING, COMPARING = "loading the model again", "scoring the saved checkpoint"

READS = {MEASURING: 3, GRADIENTS: 1, REPLAYING: 1, ROUNDING: 1, SINGLE: 2, SCORING: 1}
"""How often a stage reads every decoder block of a model that is larger than memory; gradients once more for each draw.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Seconds a token. measured: with every site tapped; forward: bare, without logits; scored: with logits, read.

    reading: seconds to read all decoder blocks once, where they are on disk. rounding: seconds to quantize all weights
    in them once, which takes as long whatever the tokens are.
    """

    measured: float
    forward: float
    scored: float
    reading: float = 0.0
    rounding: float = 0.0

    def shared(self, ranks: int) -> Speed:
        """Of so many ranks together, each of which reads all blocks."""
        return replace(self, measured=self.measured / ranks, forward=self.forward / ranks, scored=self.scored / ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a report or a simulation does. tokens: of the corpus, 0 where it was measured before; evaluated: tokens that
    predictions are taken on. priced_alone: how many of the schemes are replayed for prices alone. formats: in how many
    ways all schemes quantize weights. calibrations: title and tokens of every recipe's calibration. rendered: sites of
    the card that is written, 0 for none. ratios: tokens whose own ratios are taken, in a pass of their own.
    """

    tokens: int
    evaluated: int = 0
    schemes: int = 0
    priced_alone: int = 0
    weights: int = 0
    formats: int = 0
    recipes: int = 0
    by_damage: bool = False
    single: int = 0
    calibrations: tuple[tuple[str, int], ...] = ()
    rendered: int = 0
    ratios: int = 0


def count_weights(schemes: Sequence[Scheme]) -> int:
    """In how many ways schemes quantize weights: each is replayed once more by itself."""
    return len({str(scheme.weights) for scheme in schemes if scheme.weights is not None})


def forward_passes(work: Work) -> float:
    """Of the simulation, over its evaluation tokens, at most."""
    recorded = 1.0 if work.by_damage else 1 + gradient_passes(work.evaluated)
    return recorded + replay_passes(work) + FLOOR + single_passes(work) + score_passes(work)


def gradient_passes(evaluated: int) -> float:
    """Backward, over so many evaluation tokens."""
    return BACKWARD * draws_for(evaluated)


def replay_passes(work: Work) -> float:
    """The blocks unmodified, and their groups under every scheme."""
    full = work.schemes - work.priced_alone + work.weights
    return CLEAN + REPLAYED * full + PRICED * work.priced_alone


def score_passes(work: Work) -> float:
    """With logits: the model unmodified, and under every scheme, mixture and recipe."""
    like_int8 = work.schemes - work.priced_alone + MIXTURES + work.recipes
    return 1 + SCORED * like_int8 + SCORED_OTHER * work.priced_alone


def scheme_seconds(work: Work, speed: Speed) -> float:
    """What one scheme more takes, priced alone and scored on the whole model."""
    return (PRICED * speed.forward + SCORED_OTHER * speed.scored) * work.evaluated


def single_passes(work: Work) -> int:
    """At most: one forward pass for each group that is simulated alone, as asked for or as prices rest on it, and one
    of the unmodified model each time.
    """
    counts = [work.single, ANCHORS] if work.by_damage else [work.single + UNCERTAIN]
    return sum(1 + count for count in counts if count)


def expected_stages(work: Work, speed: Speed) -> list[Stage]:
    """Every stage of a report or a simulation, in its order, with the seconds that it will take."""
    bare, logits = speed.forward * work.evaluated, speed.scored * work.evaluated
    floor = FLOOR if not speed.reading else FLOOR_UNSKIPPED
    stages = {
        MEASURING: speed.measured * work.tokens,
        RATIOS: speed.measured * work.ratios,
        GRADIENTS: 0.0 if work.by_damage else gradient_passes(work.evaluated) * bare + logits,
        REPLAYING: (replay_passes(work) + work.by_damage) * bare + work.formats * speed.rounding,
        ROUNDING: floor * logits,
        SINGLE: SCORED * single_passes(work) * logits,
        **{title: speed.measured * tokens for title, tokens in work.calibrations},
        SCORING: score_passes(work) * logits + (work.formats + work.recipes) * speed.rounding,
        RENDERING: rendering(work.rendered) if work.rendered else 0.0,
    }
    if not work.evaluated:
        stages = {title: stages[title] for title in (MEASURING, RATIOS)}
    reads = {**READS, GRADIENTS: READS[GRADIENTS] + draws_for(work.evaluated)}
    return [
        Stage(title, seconds + reads.get(title, 0) * speed.reading) for title, seconds in stages.items() if seconds > 0
    ]


def rendering(sites: int) -> float:
    """Seconds of a card with so many sites."""
    return RENDERED + RENDERED_SITE * sites


def calibrating(recipe: str) -> str:
    """Title of the stage in which a recipe that smooths is calibrated on the model."""
    return f"calibrating {recipe}"


def advise_stages(
    evaluated: int, speed: Speed, *, advised: str, smoothing: int, calibrating_again: int, sites: int
) -> list[Stage]:
    """Of advice. evaluated: tokens that choices are simulated on; advised: title of the one that is chosen; smoothing,
    calibrating_again: tokens that are run before smoothing can be offered, and again for what is chosen, 0 where it is
    not offered; sites: on the card.
    """
    bare, logits = speed.forward * evaluated, speed.scored * evaluated
    once_more = Stage(CHOOSING, (1 + SCORED) * logits)
    stages = [
        Stage(SMOOTHING, speed.measured * smoothing),
        Stage(PRICING, (gradient_passes(evaluated) + CLEAN + REPLAYED * MENU) * bare + logits),
        Stage(CHOOSING, (1 + SCORED * CHOICES) * logits),
        *([once_more] * ROUNDS),
        Stage(calibrating(advised), speed.measured * calibrating_again),
        *([once_more] if calibrating_again else []),
        Stage(RENDERING, rendering(sites)),
    ]
    return [stage for stage in stages if stage.seconds > 0]


def verify_stages(
    evaluated: int,
    speed: Speed,
    *,
    calibrations: Sequence[tuple[str, int]],
    again: Sequence[tuple[str, int]],
    oneshot: int,
    sites: int,
    loading: float,
) -> list[Stage]:
    """Of a verification. calibrations, again: title and tokens of what is run before the prediction, and after it;
    oneshot: tokens that llm-compressor runs; loading: seconds that it took to load the model the first time, as saving
    it does too.
    """
    logits = speed.scored * evaluated
    before, after = (
        [Stage(title, speed.measured * tokens) for title, tokens in runs if tokens] for runs in (calibrations, again)
    )
    return [
        *before,
        Stage(PREDICTING, (1 + SCORED) * logits),
        *after,
        Stage(ONE_SHOT, ONESHOT * speed.measured * oneshot + loading),
        Stage(RELOADING, loading),
        Stage(COMPARING, 2 * (1 + SCORED) * logits + loading),
        Stage(RENDERING, rendering(sites)),
    ]


def logits_stages(evaluated: int, speed: Speed, *, others: Sequence[tuple[str, str]], loading: float) -> list[Stage]:
    """Of a comparison of checkpoints. others: titles of loading and of scoring each model but the base; loading:
    seconds that it took to load that.
    """
    logits = speed.scored * evaluated
    stages = [Stage(ROUNDING, 2 * logits)]
    for load, score in others:
        stages += [Stage(load, loading), Stage(score, 2 * logits)]
    return stages


def seconds(work: Work, speed: Speed) -> float:
    """Of all stages."""
    return sum(stage.seconds for stage in expected_stages(work, speed))


def samples_in(limit: float, work: Work, speed: Speed, *, samples: int, evaluation: int, budget: int) -> int | None:
    """The most samples of a corpus whose report ends within `limit` seconds; None where two do not.

    samples: of the whole corpus; evaluation: tokens of its evaluation split, of which `budget` are used at most.
    Samples are taken for equally long, as a fair choice of them is.
    """
    for count in range(samples, 1, -1):
        share = count / samples
        part = replace(work, tokens=round(work.tokens * share), evaluated=min(budget, round(evaluation * share)))
        if seconds(part, speed) <= limit:
            return count
    return None


def minutes(value: float) -> str:
    """A length of time as one says it before it has passed."""
    if value < 60:
        return f"{max(round(value / 5) * 5, 5)} seconds"
    if round(value / 60, 1) == 1:
        return "1 minute"
    if value < 600:
        return f"{value / 60:.1f} minutes".replace(".0 ", " ")
    return f"{value / 60:.0f} minutes" if value < 7200 else f"{value / 3600:.1f} hours"
