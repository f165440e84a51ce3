"""The files that settings name, located and read before anything heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quantaudit.common.outputs.claims import check_inputs
from quantaudit.common.timing import timed
from quantaudit.corpus.load import Corpus, load_corpus
from quantaudit.corpus.spec import parse
from quantaudit.model.loading.checkpoint import Checkpoint, locate
from quantaudit.recipe.parse import check_recipe
from quantaudit.settings import Settings

if TYPE_CHECKING:
    from quantaudit.model.loading.load import LoadedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFiles:
    """The rows of a corpus and a model: a checkpoint that is whole, or one that is in memory already."""

    settings: Settings
    model: Checkpoint | LoadedModel
    corpus: Corpus


def open_files(settings: Settings, loaded: LoadedModel | None = None, *, compressed: bool = False) -> InputFiles:
    """Read every file that the settings name, cheapest first; weights are located and not read. Imports no torch.

    loaded: a model in memory, instead of the checkpoint. compressed: as for `locate`. Raises a QuantauditError that
    names the cause.
    """
    check_inputs({"the corpus": parse(settings.corpus.corpus).path, "the model": Path(settings.model.model)})
    for path in settings.simulate.recipes:
        check_recipe(path)
    with timed("reading the corpus"):
        corpus = load_corpus(settings.corpus.corpus, samples=settings.corpus.samples, seed=settings.corpus.seed)
    for picture in {picture.path for row in corpus.rows for picture in row.pictures or ()}:
        check_inputs({"the corpus' image": picture})
    if loaded is not None:
        return InputFiles(settings=settings, model=loaded, corpus=corpus)
    with timed("locating the checkpoint"):
        checkpoint = locate(settings.model.model, revision=settings.model.revision, compressed=compressed)
    # Of a Hub id and of the demo only now known.
    check_inputs({"the model": checkpoint.weights[0] if checkpoint.gguf else checkpoint.folder})
    return InputFiles(settings=settings, model=checkpoint, corpus=corpus)
