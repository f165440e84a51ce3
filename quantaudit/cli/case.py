"""What `advise` and `verify` begin with: a recipe, a card with its profile, and the model that both speak of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantaudit.card.amend import check_card
from quantaudit.card.schema import Card, load_card
from quantaudit.cli import console
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.pipeline import Settings, Subject, check_profile, prepare, repeat
from quantaudit.profile import Profile, load_profile
from quantaudit.recipe.resolve import Resolution, resolve
from quantaudit.recipe.source import read_recipe
from quantaudit.simulate import evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A recipe resolved on a model that was measured. samples: those that predictions are evaluated on."""

    card: Card
    profile: Profile
    settings: Settings
    subject: Subject
    resolution: Resolution
    samples: Sequence[TokenizedSample]


def open_case(
    recipe: Path,
    model: str,
    card: Path,
    *,
    profile: Path | None,
    corpus: str | None,
    revision: str | None,
    evaluation_tokens: int,
    device: str,
    trust_remote_code: bool,
) -> Case:
    """Read every file, then load the model and its text as they were measured. profile: None where it lies beside.

    Raises a QuantauditError where a file is broken, or they do not belong together.
    """
    parsed, told = read_recipe(recipe), load_card(card)
    measured = load_profile(profile or card.parent / "profile.safetensors")
    check_card(told, measured, card)
    settings = repeat(
        measured, model, corpus=corpus, revision=revision, device=device, trust_remote_code=trust_remote_code
    )
    subject = prepare(settings, console.say)
    check_profile(subject, measured)
    return Case(
        card=told,
        profile=measured,
        settings=settings,
        subject=subject,
        resolution=resolve(parsed, subject.loaded.model),
        samples=evaluation.select_some(subject.corpus.samples, evaluation_tokens),
    )
