"""Predicted against actual: llm-compressor runs a recipe, and what it saved is read back, checked and scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from quantaudit.card.schema import Card, Verification
from quantaudit.common.outputs.file_set import file_set
from quantaudit.common.outputs.scratch import scratch_folder
from quantaudit.common.progress import Stages, silent_stages
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.loading.load import LoadedModel
from quantaudit.policy import Policy
from quantaudit.simulate.cost import ONE_SHOT, RELOADING
from quantaudit.simulate.opened_recipe import OpenedRecipe
from quantaudit.simulate.records import RecipeRow
from quantaudit.simulate.scheme_info import rows_of
from quantaudit.verify.compare import TOLERANCE, SavedCheckpoint, compare
from quantaudit.verify.oneshot import Pipeline, run_oneshot
from quantaudit.verify.predict import predict


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """How a recipe is verified. save: folder that keeps the quantized checkpoint; None where it is discarded.

    pipeline: llm-compressor's calibration pipeline. tolerance: relative difference of the KL that still agrees.
    """

    save: Path | None = None
    pipeline: Pipeline = "basic"
    tolerance: float = TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What came of a recipe, and the score that was predicted of it."""

    result: Verification
    predicted: RecipeRow


def verify(
    opened: OpenedRecipe,
    reload: Callable[[], LoadedModel],
    card: Card,
    policy: Policy,
    options: VerifyOptions | None = None,
    *,
    stages: Stages = silent_stages,
) -> Verified:
    """Run a recipe for real, and compare scales, KL and perplexity with what the card's profile predicts.

    opened: its model is quantized in place and then released, so that no more than two are in memory at a time; whoever
    calls holds no other reference to it. reload: loads the same checkpoint again, unquantized. Raises RecipeError where
    llm-compressor refuses the recipe, ModelError where what it saved cannot be read.
    """
    options = options or VerifyOptions()
    expected = predict(opened, stages)
    with ExitStack() as stack:
        folder = options.save or stack.enter_context(scratch_folder()) / "checkpoint"
        stages(ONE_SHOT, 0)
        checkpoint = save_over(folder, partial(_make, opened, options.pipeline))
        opened.release()
        stages(RELOADING, 0)
        tolerance = options.tolerance
        result = compare(reload(), checkpoint, expected, card, policy, tolerance=tolerance, stages=stages)
    return Verified(result=result, predicted=expected.row)


def with_verification(card: Card, verified: Verified) -> Card:
    """The card with a result, in place of an earlier one of the same recipe and pipeline.

    Where what was saved is as predicted, the predicted score joins the card's simulation, for a gate to find: unless it
    holds one of this very recipe already, or rests on more tokens than this one. Where it is not, what an earlier
    verification had added goes.
    """
    result, simulation = verified.result, card.simulation
    key = (result.recipe, result.pipeline)
    others = [row for row in card.verification if (row.recipe, row.pipeline) != key]
    enough = simulation is not None and verified.predicted.tokens >= simulation.evaluation.tokens
    if simulation is not None and enough and result.agrees and not any(rows_of(simulation, result.digest)):
        row = verified.predicted.model_copy(update={"title": f"recipe {result.recipe}", "digest": result.digest})
        simulation = simulation.with_recipe(row, f"{result.recipe} verified")
    elif simulation is not None and result.agrees is False:
        simulation = simulation.without_recipe(f"{result.recipe} verified")
    return card.model_copy(update={"verification": [*others, result], "simulation": simulation})


def save_over(folder: Path, make: Callable[[Path], SavedCheckpoint]) -> SavedCheckpoint:
    """A checkpoint that is made elsewhere in full, and then takes the place of an earlier one in `folder`.

    Weights of the earlier one go, and the index of its shards; other files stay unless the new one has them too.
    """
    with file_set(folder, option="--save") as files:
        made = make(files.staged)
        for pattern in ("model*.safetensors", "model*.safetensors.index.json"):
            for path in folder.glob(pattern):
                files.remove(path.name)
    return replace(made, folder=folder)


def _make(opened: OpenedRecipe, pipeline: Pipeline, folder: Path) -> SavedCheckpoint:
    return make(opened.loaded, opened.path, opened.corpus.samples, folder, pipeline=pipeline)


def make(
    loaded: LoadedModel, recipe: Path, samples: Iterable[TokenizedSample], folder: Path, *, pipeline: Pipeline
) -> SavedCheckpoint:
    """Quantize the model in place on the corpus's calibration samples, in their order, and save it."""
    calibration = [sample for sample in samples if sample.split == "calibration"]
    without_mask = run_oneshot(loaded, recipe, calibration, folder, pipeline=pipeline)
    return SavedCheckpoint(folder=folder, pipeline=pipeline, samples=len(calibration), without_mask=tuple(without_mask))
