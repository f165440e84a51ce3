"""The files that settings name, found and read before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass

from quantaudit.common.timing import timed
from quantaudit.corpus.load import Corpus, load_corpus
from quantaudit.model.loading.checkpoint import Checkpoint, locate
from quantaudit.recipe.parse import check_recipe
from quantaudit.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """A checkpoint that is whole, and the rows of a corpus."""

    settings: Settings
    checkpoint: Checkpoint
    corpus: Corpus


def open_inputs(settings: Settings) -> Inputs:
    """Read every file that the settings name, cheapest first; weights are found and not read. Imports no torch.

    Raises a QuantauditError that names the cause.
    """
    for path in settings.recipes:
        check_recipe(path)
    with timed("reading the corpus"):
        corpus = load_corpus(settings.corpus, samples=settings.samples, seed=settings.seed)
    with timed("locating the checkpoint"):
        checkpoint = locate(settings.model, revision=settings.revision)
    return Inputs(settings=settings, corpus=corpus, checkpoint=checkpoint)
