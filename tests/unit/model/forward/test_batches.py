"""Batches hold every sample once, padded on the right, and padding changes nothing for the samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import quantaudit
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.errors import MeasurementError
from quantaudit.model.forward import batches as forward_batches
from quantaudit.model.forward.batches import BatchLimit, batches, divide, forward, padded_tokens
from quantaudit.model.forward.capture import capture
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import discover
from tests.builders import PAD, sample

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 2, 5, 8, 100])
def test_batches_hold_every_sample_once_with_its_own_ids(tiny_corpus: TokenizedCorpus, size: int) -> None:
    built = list(batches(tiny_corpus.samples, BatchLimit(size), pad=PAD, device=CPU))
    held = [s for batch in built for s in batch.samples]
    assert sorted(s.index for s in held) == list(range(len(tiny_corpus.samples)))
    assert all(len(batch.samples) <= size for batch in built)
    assert len(built) == len(divide(tiny_corpus.samples, BatchLimit(size)))
    for batch in built:
        assert batch.tokens == sum(len(s.ids) for s in batch.samples)
        assert batch.padded == (batch.tokens < batch.input_ids.numel())
        for row, s in zip(batch.input_ids, batch.samples, strict=True):
            assert row[: len(s.ids)].tolist() == s.ids.tolist()
            assert (row[len(s.ids) :] == PAD).all()


@pytest.mark.parametrize("tokens", [1, 40, 64, 100, 10_000])
def test_a_batch_has_as_many_samples_as_its_tokens_allow_padding_included(
    tiny_corpus: TokenizedCorpus, tokens: int
) -> None:
    divided = divide(tiny_corpus.samples, BatchLimit(tokens=tokens))
    assert sorted(s.index for rows in divided for s in rows) == list(range(len(tiny_corpus.samples)))
    for rows, following in zip(divided, [*divided[1:], []], strict=True):
        assert padded_tokens(rows) <= tokens or len(rows) == 1
        assert not following or len(rows[0].ids) * (len(rows) + 1) > tokens


def test_batches_do_not_depend_on_the_order_of_the_samples(tiny_corpus: TokenizedCorpus) -> None:
    forwards, backwards = (
        [[s.index for s in batch.samples] for batch in batches(samples, BatchLimit(4), pad=0, device=CPU)]
        for samples in (tiny_corpus.samples, tiny_corpus.samples[::-1])
    )
    assert forwards == backwards


def test_samples_of_similar_length_share_a_batch(tiny_corpus: TokenizedCorpus) -> None:
    lengths = [[len(s.ids) for s in b.samples] for b in batches(tiny_corpus.samples, BatchLimit(4), pad=0, device=CPU)]
    flat = [length for batch in lengths for length in batch]
    assert flat == sorted(flat, reverse=True)


def test_logits_of_a_padded_sample_are_those_of_the_sample_alone(tiny_loaded: LoadedModel) -> None:
    samples = [sample(range(n, 2 * n), index=n) for n in (3, 9, 14)]
    (together,) = batches(samples, BatchLimit(3), pad=PAD, device=CPU)
    assert together.padded
    logits = forward(tiny_loaded.model, together)
    for row, s in zip(logits, together.samples, strict=True):
        (alone,) = batches([s], pad=PAD, device=CPU)
        assert not alone.padded
        torch.testing.assert_close(row[: len(s.ids)], forward(tiny_loaded.model, alone)[0], rtol=0.05, atol=0.1)


def test_a_forward_pass_keeps_no_graph(tiny_loaded: LoadedModel) -> None:
    (batch,) = batches([sample([1, 2, 3])], device=CPU)
    assert not forward(tiny_loaded.model, batch).requires_grad


class _Failing(torch.nn.Module):
    """A model whose forward pass raises an error of its own."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self._error = error

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> None:
        raise self._error


@pytest.mark.parametrize("error", [ValueError("give me images"), RuntimeError("shapes 9x64 and 32x8"), KeyError("x")])
def test_an_error_of_the_model_itself_is_reported_as_the_model_s_own(error: Exception) -> None:
    (batch,) = batches([sample([1, 2, 3])], pad=PAD, device=torch.device("cpu"))
    with pytest.raises(MeasurementError, match=f"own forward pass fails: {type(error).__name__}: .*{error.args[0]}"):
        forward(_Failing(error), batch)


def test_an_error_of_memory_stays_what_it_is() -> None:
    (batch,) = batches([sample([1, 2, 3])], pad=PAD, device=torch.device("cpu"))
    with pytest.raises(RuntimeError, match="allocate memory"):
        forward(_Failing(RuntimeError("DefaultCPUAllocator: can't allocate memory")), batch)


def test_an_error_of_a_hook_stays_what_it_is(tiny_loaded: LoadedModel) -> None:
    def fail(site: str, x_BTC: torch.Tensor) -> None:
        raise ZeroDivisionError

    (batch,) = batches([sample([1, 2, 3])], pad=PAD, device=torch.device("cpu"))
    sites = discover(tiny_loaded.model).sites
    with pytest.raises(ZeroDivisionError), capture(tiny_loaded.model, sites, fail):
        forward(tiny_loaded.model, batch)


def test_errors_of_ours_are_known_by_the_whole_package() -> None:
    assert Path(quantaudit.__file__).parent == forward_batches._PACKAGE
