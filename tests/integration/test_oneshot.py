"""A simulated recipe equals reality: llm-compressor runs it on the demo, and what it saves is scored too."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from quantaudit.common.resources import resource_dir
from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.forward.arithmetic import choose_arithmetic, computed_in
from quantaudit.model.forward.attention import eager_attention
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import discover
from quantaudit.provenance import Arithmetic
from quantaudit.recipe.parse import read_recipe
from quantaudit.recipe.resolve import resolve
from quantaudit.simulate.evaluation import select
from quantaudit.simulate.logits.score_plans import score_checkpoint, score_plans
from quantaudit.simulate.quantized.recipe_plan import recipe_plan
from quantaudit.simulate.records import RecipeRow
from quantaudit.verify.oneshot import Pipeline, load_saved, run_oneshot, saved_parameters, with_saved_ranges
from tests.builders import builtin_corpus, loaded_from

RECIPES = ("w8a8_static", "w8a8_dynamic", "fp8_static", "w8a8_static_moving_average", "w8a8_smoothquant")
IN_THE_OTHER = ("w8a8_static",)
"""Those that run in the other arithmetic too. It is the slower one, many times slower where products are not native."""

pytestmark = [
    pytest.mark.checkpoint,
    pytest.mark.parametrize(
        ("arithmetic", "trial"),
        [*(("auto", name) for name in RECIPES), *(("other", name) for name in IN_THE_OTHER)],
        indirect=True,
        scope="module",
    ),
]


@dataclass(frozen=True)
class Trial:
    """One recipe three ways: predicted from the profile, with the saved scales, and the saved checkpoint itself."""

    predicted: RecipeRow
    rescaled: RecipeRow
    real: RecipeRow


@pytest.fixture(scope="module", autouse=True)
def arithmetic(request: pytest.FixtureRequest, demo_loaded: LoadedModel) -> Iterator[Arithmetic]:
    """That of all that runs here, llm-compressor included."""
    chosen = choose_arithmetic("auto", demo_loaded.model)
    if request.param == "other":
        chosen = "native" if chosen == "float32" else "float32"
    with computed_in(chosen, demo_loaded.model):
        yield chosen


@pytest.fixture(scope="module")
def corpus(demo_loaded: LoadedModel) -> TokenizedCorpus:
    return builtin_corpus(demo_loaded, samples=9, max_length=48)


@pytest.fixture(scope="module")
def profile(demo_loaded: LoadedModel, corpus: TokenizedCorpus, arithmetic: Arithmetic) -> Profile:
    with eager_attention(demo_loaded.model):
        return measure(demo_loaded, corpus)


@pytest.fixture(scope="module")
def samples(corpus: TokenizedCorpus) -> list[TokenizedSample]:
    return select(corpus.samples, 128)


@pytest.fixture(scope="module")
def trial(
    request: pytest.FixtureRequest,
    demo_loaded: LoadedModel,
    corpus: TokenizedCorpus,
    profile: Profile,
    samples: list[TokenizedSample],
    tmp_path_factory: pytest.TempPathFactory,
) -> Trial:
    path = resource_dir("recipes") / f"{request.param}.yaml"
    folder = tmp_path_factory.mktemp(request.param)
    calibration = [sample for sample in corpus.samples if sample.split == "calibration"]
    changed = loaded_from(copy.deepcopy(demo_loaded.model), demo_loaded)
    # Layer by layer, in a 16-bit checkpoint, each norm would be smoothed by what rounding made of those before it.
    pipeline: Pipeline = "basic" if "smooth" in request.param else "independent"
    run_oneshot(changed, path, calibration, folder, pipeline=pipeline)

    architecture = discover(demo_loaded.model)
    found = resolve(read_recipe(path), demo_loaded.model)
    recipe = found.as_recipe(request.param)
    plan = recipe_plan(recipe, demo_loaded.model, architecture.groups, profile, corpus.samples)
    plans = [plan, with_saved_ranges(plan, saved_parameters(folder))]
    predicted, rescaled = score_plans(demo_loaded.model, samples, plans, blocks=architecture.blocks)
    saved = load_saved(folder, torch.device("cpu"))
    real = score_checkpoint(demo_loaded.model, saved, samples, plan, blocks=architecture.blocks)
    return Trial(predicted=predicted, rescaled=rescaled, real=real)


def test_the_prediction_is_within_five_percent_of_the_saved_checkpoint(trial: Trial) -> None:
    """Exactly so on one processor; 5 % leaves room for other kernels."""
    assert trial.predicted.kl == pytest.approx(trial.real.kl, rel=0.05)
    assert trial.predicted.perplexity == pytest.approx(trial.real.perplexity, rel=0.05)
    assert trial.real.perplexity_base == trial.predicted.perplexity_base
    assert (trial.predicted.approximate, trial.predicted.unsimulated) == ([], [])


def test_with_the_saved_scales_it_is_the_saved_checkpoint(trial: Trial) -> None:
    assert trial.real.kl is not None
    assert trial.real.kl > 1e-3
    assert trial.rescaled.kl == pytest.approx(trial.real.kl, abs=1e-6, rel=0)
    assert trial.rescaled.top1 == trial.real.top1
    assert trial.rescaled.perplexity == pytest.approx(trial.real.perplexity, rel=1e-6)
    assert trial.rescaled.propagation == pytest.approx(trial.real.propagation, rel=1e-6)
