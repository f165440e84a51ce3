"""One tiny model with its evaluation samples and static ranges, shared by the tests of this folder."""

from __future__ import annotations

import pytest

from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Architecture, discover
from quantaudit.quant.observers import QParams
from quantaudit.simulate.evaluation import select
from tests.unit.simulate.reference import ranges


@pytest.fixture(scope="session")
def architecture(tiny_loaded: LoadedModel) -> Architecture:
    return discover(tiny_loaded.model)


@pytest.fixture(scope="session")
def samples(tiny_corpus: TokenizedCorpus) -> list[TokenizedSample]:
    chosen = select(tiny_corpus.samples, 4096)
    assert len(chosen) > 3
    return chosen


@pytest.fixture(scope="session")
def qparams(
    tiny_loaded: LoadedModel, architecture: Architecture, tiny_corpus: TokenizedCorpus
) -> dict[str, QParams | None]:
    calibration = [sample for sample in tiny_corpus.samples if sample.split == "calibration"]
    return ranges(tiny_loaded.model, architecture.groups, calibration)
