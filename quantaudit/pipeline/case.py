"""What `advise` and `verify` begin with: a recipe, a card with its profile, and the model that both speak of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantaudit.card.amend import check_card
from quantaudit.card.schema import Card, load_card
from quantaudit.common.choices import ArithmeticChoice
from quantaudit.measure.profile import Profile, load_profile
from quantaudit.pipeline.inputs import Inputs, open_inputs
from quantaudit.recipe.parse import check_recipe
from quantaudit.settings import repeat

if TYPE_CHECKING:
    from quantaudit.common.progress import Stages
    from quantaudit.pipeline.run import Subject
    from quantaudit.simulate.opened_recipe import OpenedRecipe


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFiles:
    """Files that belong together, read and checked: recipe, card, its profile, the model's checkpoint and corpus."""

    recipe: Path
    card: Card
    profile: Profile
    inputs: Inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A recipe, opened, with the card of its model, and the subject whose model it is."""

    card: Card
    subject: Subject
    opened: OpenedRecipe


def read_case(
    recipe: Path,
    model: str,
    card: Path,
    *,
    profile: Path | None,
    corpus: str | None,
    revision: str | None,
    arithmetic: ArithmeticChoice,
    device: str,
    trust_remote_code: bool,
) -> CaseFiles:
    """Read every file, without torch. profile: None where it lies beside the card.

    Raises a QuantauditError where a file is broken, or they do not belong together.
    """
    check_recipe(recipe)
    told, measured = load_card(card), load_profile(profile or card.parent / "profile.safetensors")
    check_card(told, measured, card)
    settings = repeat(
        measured,
        model,
        corpus=corpus,
        revision=revision,
        arithmetic=None if arithmetic == "auto" else arithmetic,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    return CaseFiles(recipe=recipe, card=told, profile=measured, inputs=open_inputs(settings))


def open_case(files: CaseFiles, say: Callable[[str], None], stages: Stages, *, evaluation_tokens: int) -> Case:
    """Load the model and its text as they were measured. Raises a QuantauditError where they are others."""
    from quantaudit.pipeline.run import check_profile, prepare
    from quantaudit.recipe.parse import read_recipe
    from quantaudit.recipe.resolve import resolve
    from quantaudit.simulate import evaluation
    from quantaudit.simulate.opened_recipe import OpenedRecipe

    parsed = read_recipe(files.recipe)
    subject = prepare(files.inputs.settings, say, inputs=files.inputs, stages=stages)
    check_profile(subject, files.profile)
    opened = OpenedRecipe(
        path=files.recipe,
        resolution=resolve(parsed, subject.loaded.model),
        loaded=subject.loaded,
        profile=files.profile,
        corpus=subject.corpus,
        samples=evaluation.select_some(subject.corpus.samples, evaluation_tokens),
    )
    return Case(card=files.card, subject=subject, opened=opened)
