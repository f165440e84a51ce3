"""What `advise` and `verify` begin with: a recipe, a card with its profile, and the model that both speak of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantaudit.card.amend import check_card
from quantaudit.card.schema import Card, load_card
from quantaudit.cli import console
from quantaudit.common.choices import ArithmeticChoice
from quantaudit.measure.profile import Profile, load_profile
from quantaudit.pipeline.inputs import Inputs, open_inputs
from quantaudit.recipe.parse import check_recipe
from quantaudit.settings import repeat

if TYPE_CHECKING:
    from quantaudit.common.progress import Stages
    from quantaudit.corpus.tokens import TokenizedSample
    from quantaudit.pipeline.run import Subject
    from quantaudit.recipe.resolve import Resolution


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseFiles:
    """Files that belong together, read and checked: recipe, card, its profile, the model's checkpoint and corpus."""

    recipe: Path
    card: Card
    profile: Profile
    inputs: Inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A recipe resolved on a model that was measured. samples: those that predictions are evaluated on."""

    card: Card
    profile: Profile
    subject: Subject
    resolution: Resolution
    samples: Sequence[TokenizedSample]


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


def open_case(files: CaseFiles, stages: Stages, *, evaluation_tokens: int) -> Case:
    """Load the model and its text as they were measured. Raises a QuantauditError where they are others."""
    from quantaudit.pipeline.run import check_profile, prepare
    from quantaudit.recipe.parse import read_recipe
    from quantaudit.recipe.resolve import resolve
    from quantaudit.simulate import evaluation

    parsed = read_recipe(files.recipe)
    subject = prepare(files.inputs.settings, console.say, inputs=files.inputs, stages=stages)
    check_profile(subject, files.profile)
    return Case(
        card=files.card,
        profile=files.profile,
        subject=subject,
        resolution=resolve(parsed, subject.loaded.model),
        samples=evaluation.select_some(subject.corpus.samples, evaluation_tokens),
    )
