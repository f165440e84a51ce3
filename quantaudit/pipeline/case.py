"""What `advise` and `verify` begin with: a recipe, a card with its profile, and the model that both are about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantaudit.card.amend import check_card
from quantaudit.card.schema import Card, load_card
from quantaudit.measure.profile import Profile, load_profile
from quantaudit.pipeline.files import InputFiles, open_files
from quantaudit.pipeline.settings_of_profile import settings_of_profile
from quantaudit.recipe.parse import check_recipe
from quantaudit.settings import CaseSpec, SimulateOptions

if TYPE_CHECKING:
    from quantaudit.common.progress import Stages
    from quantaudit.model.loading.load import LoadedModel
    from quantaudit.pipeline.prepare import AuditInputs, Say
    from quantaudit.simulate.opened_recipe import OpenedRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFiles:
    """Files that belong together, read and checked: recipe, card, its profile, the model's checkpoint and corpus."""

    spec: CaseSpec
    card: Card
    profile: Profile
    inputs: InputFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A recipe, opened, with the files it came from and the inputs whose model it is resolved on."""

    files: CaseFiles
    inputs: AuditInputs
    opened: OpenedRecipe

    @property
    def evaluated(self) -> int:
        """Evaluation tokens that predictions are taken on."""
        return sum(len(sample.ids) for sample in self.opened.samples)


def read_case(spec: CaseSpec, loaded: LoadedModel | None = None) -> CaseFiles:
    """Read every file, without torch. loaded: the model, where it is in memory already.

    Raises a QuantauditError where a file is broken, or they do not belong together.
    """
    check_recipe(spec.recipe)
    card = load_card(spec.card)
    profile = load_profile(spec.profile or spec.card.parent / "profile.safetensors")
    check_card(card, profile, spec.card)
    settings = settings_of_profile(
        profile,
        spec.model,
        corpus=spec.corpus,
        revision=spec.revision,
        arithmetic=spec.arithmetic,
        device=spec.device,
        trust_remote_code=spec.trust_remote_code,
        evaluation_tokens=spec.evaluation_tokens or _tokens_of(card),
    )
    return CaseFiles(spec=spec, card=card, profile=profile, inputs=open_files(settings, loaded))


def _tokens_of(card: Card) -> int:
    """Evaluation tokens that a card's predictions were taken on; the usual number where it holds none."""
    return SimulateOptions().evaluation_tokens if card.simulation is None else card.simulation.evaluation.budget


def open_case(files: CaseFiles, stages: Stages, say: Say, *, memory: int | None = None) -> Case:
    """Load the model and its text as they were measured. memory: bytes for a job that can do without the whole model.

    Raises a QuantauditError where they are others.
    """
    from quantaudit.pipeline.plan.fit import prepare_within
    from quantaudit.pipeline.prepare import check_profile, prepare
    from quantaudit.recipe.parse import read_recipe
    from quantaudit.recipe.resolve import resolve
    from quantaudit.simulate import evaluation
    from quantaudit.simulate.opened_recipe import OpenedRecipe

    recipe = read_recipe(files.spec.recipe)
    settings = files.inputs.settings
    if memory is None:
        inputs = prepare(settings, say, files=files.inputs, stages=stages)
    else:
        inputs = prepare_within(settings, memory, say, files=files.inputs, stages=stages, measured=True)
    check_profile(inputs, files.profile)
    opened = OpenedRecipe(
        path=files.spec.recipe,
        resolution=resolve(recipe, inputs.loaded.model),
        loaded=inputs.loaded,
        profile=files.profile,
        corpus=inputs.corpus,
        samples=evaluation.choose(
            inputs.corpus.samples, settings.simulate.evaluation_tokens, inputs.loaded.tokenizer
        ).samples,
    )
    return Case(files=files, inputs=inputs, opened=opened)
