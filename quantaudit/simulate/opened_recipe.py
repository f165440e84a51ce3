"""A recipe with all that is opened for it: what advising on it and verifying it begin with."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.measure.profile import Profile
from quantaudit.model.loading.load import LoadedModel
from quantaudit.recipe.resolve import Resolution


@dataclass(slots=True, kw_only=True)
class OpenedRecipe:
    """A recipe resolved on a loaded model that was measured.

    path: the recipe's file. loaded: the model as it was measured; gone after `release`. corpus: the profile's own text.
    samples: those parts of it that predictions are evaluated on.
    """

    path: Path
    resolution: Resolution
    loaded: LoadedModel
    profile: Profile
    corpus: TokenizedCorpus
    samples: Sequence[TokenizedSample]

    @property
    def name(self) -> str:
        """The recipe's name in reports: its file's, without the ending."""
        return self.path.stem

    def release(self) -> None:
        """Let the model go, cycles and all, before others are loaded. Who else refers to it keeps it in memory."""
        del self.loaded
        gc.collect()
