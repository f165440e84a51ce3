"""Batches that memory does not hold are run in halves, from the beginning: the statistics are those of smaller ones."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from quantaudit.common.choices import Experts
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.measure.dealt import Dealt
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.forward.batches import BatchLimit
from quantaudit.model.loading.load import LoadedModel
from tests.builders import differences, load, random_corpus, save_checkpoint
from tests.families import family_model

CPU = torch.device("cpu")
LACK = (
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
)


@pytest.fixture(scope="module")
def corpus() -> TokenizedCorpus:
    return random_corpus([40, 33, 33, 29, 24, 20, 11, 3])


@pytest.fixture(scope="module", params=["qwen3", "qwen3-moe"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("dealt") / "model", family_model(request.param))


@contextmanager
def small_memory(loaded: LoadedModel, error: Exception, *, rows: int, after: int = 0) -> Iterator[list[int]]:
    """The last block raises `error` on more rows than that, once it has run `after` batches. Gives rows of all runs."""
    seen: list[int] = []

    def hook(_module: object, _arguments: Any, keywords: dict[str, Any], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        seen.append(len(hidden))
        if len(hidden) > rows and len(seen) > after:
            raise error

    block: Any = loaded.model.get_submodule(loaded.architecture.blocks[-1])
    handle = block.register_forward_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def same_statistics(found: Profile, expected: Profile) -> bool:
    assert found.statistics.keys() == expected.statistics.keys()
    return not any(differences(found.statistics[key], expected.statistics[key]) for key in expected.statistics)


@pytest.mark.parametrize("error", LACK, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("by_block", [False, True])
def test_nothing_is_counted_twice_when_memory_runs_out(
    folder: Path, corpus: TokenizedCorpus, error: Exception, by_block: bool, caplog: pytest.LogCaptureFixture
) -> None:
    expected = measure(load(folder), corpus, batch=BatchLimit(2))
    loaded = load(folder, by_block=by_block)
    passed = [0]

    def progress(amount: int = 1) -> None:
        passed[0] += amount

    with small_memory(loaded, error, rows=2), caplog.at_level(logging.WARNING):
        found = measure(loaded, corpus, batch=BatchLimit(8), progress=progress)
    assert same_statistics(found, expected)
    assert found.provenance.environment.batch_size == 8
    assert passed == [corpus.info.tokens]
    asked = [record.getMessage() for record in caplog.records if record.name == "quantaudit.measure.dealt"]
    assert [text.partition("at most ")[2] for text in asked] == ["4 samples in each", "2 samples in each"]


@pytest.mark.parametrize("experts", ["routed", "all", "auto"])
def test_what_was_counted_before_memory_ran_out_is_counted_once(
    folder: Path, corpus: TokenizedCorpus, experts: Experts
) -> None:
    """It ran out in the second batch: the first had been counted."""
    expected = measure(load(folder), corpus, batch=BatchLimit(2), experts=experts)
    loaded = load(folder)
    with small_memory(loaded, LACK[0], rows=2, after=1) as seen:
        found = measure(loaded, corpus, batch=BatchLimit(4), experts=experts)
    assert seen[:3] == [4, 4, 2]
    assert same_statistics(found, expected)


def test_one_sample_that_memory_does_not_hold_ends_the_run(folder: Path, corpus: TokenizedCorpus) -> None:
    loaded = load(folder)
    with small_memory(loaded, LACK[0], rows=0) as seen, pytest.raises(torch.OutOfMemoryError):
        measure(loaded, corpus, batch=BatchLimit(2))
    assert seen == [2, 1]


def test_other_errors_are_raised_at_once(folder: Path, corpus: TokenizedCorpus) -> None:
    loaded = load(folder)
    with small_memory(loaded, RuntimeError("shapes differ"), rows=0) as seen, pytest.raises(Exception, match="shapes"):
        measure(loaded, corpus, batch=BatchLimit(4))
    assert seen == [4]


def test_a_batch_in_parts_is_its_samples_in_their_order(corpus: TokenizedCorpus) -> None:
    whole = Dealt(divided=[corpus.samples[:5], corpus.samples[5:]], pad=7, device=CPU)
    assert whole.name == ""
    halved = whole.halved()
    assert halved is not None
    assert [[s.index for s in batch.samples] for batch in halved] == [[0, 1], [2, 3], [4], [5, 6], [7]]
    assert halved.name == " 2 at a time"
    smallest = halved.halved()
    assert smallest is not None
    assert [len(batch.samples) for batch in smallest] == [1] * 8
    assert smallest.halved() is None
