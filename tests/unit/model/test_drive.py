"""Batches hold every sample once, padded on the right, and padding changes nothing for the samples."""

from __future__ import annotations

import pytest
import torch

from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.model.drive import batches, forward
from quantaudit.model.load import LoadedModel
from tests.builders import PAD, sample

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 2, 5, 8, 100])
def test_batches_hold_every_sample_once_with_its_own_ids(tiny_corpus: TokenizedCorpus, size: int) -> None:
    made = list(batches(tiny_corpus.samples, size, pad=PAD, device=CPU))
    held = [s for batch in made for s in batch.samples]
    assert sorted(s.index for s in held) == list(range(len(tiny_corpus.samples)))
    assert all(len(batch.samples) <= size for batch in made)
    for batch in made:
        assert batch.tokens == sum(len(s.ids) for s in batch.samples)
        assert batch.padded == (batch.tokens < batch.input_ids.numel())
        for row, s in zip(batch.input_ids, batch.samples, strict=True):
            assert row[: len(s.ids)].tolist() == s.ids.tolist()
            assert (row[len(s.ids) :] == PAD).all()


def test_batches_do_not_depend_on_the_order_of_the_samples(tiny_corpus: TokenizedCorpus) -> None:
    forwards, backwards = (
        [[s.index for s in batch.samples] for batch in batches(samples, 4, pad=0, device=CPU)]
        for samples in (tiny_corpus.samples, tiny_corpus.samples[::-1])
    )
    assert forwards == backwards


def test_samples_of_similar_length_share_a_batch(tiny_corpus: TokenizedCorpus) -> None:
    lengths = [[len(s.ids) for s in b.samples] for b in batches(tiny_corpus.samples, 4, pad=0, device=CPU)]
    flat = [length for batch in lengths for length in batch]
    assert flat == sorted(flat, reverse=True)


def test_logits_of_a_padded_sample_are_those_of_the_sample_alone(tiny_loaded: LoadedModel) -> None:
    samples = [sample(range(n, 2 * n), index=n) for n in (3, 9, 14)]
    (together,) = batches(samples, 3, pad=PAD, device=CPU)
    assert together.padded
    logits = forward(tiny_loaded.model, together)
    for row, s in zip(logits, together.samples, strict=True):
        (alone,) = batches([s], 1, pad=PAD, device=CPU)
        assert not alone.padded
        torch.testing.assert_close(row[: len(s.ids)], forward(tiny_loaded.model, alone)[0], rtol=0.05, atol=0.1)


def test_a_forward_pass_keeps_no_graph(tiny_loaded: LoadedModel) -> None:
    (batch,) = batches([sample([1, 2, 3])], 1, pad=0, device=CPU)
    assert not forward(tiny_loaded.model, batch).requires_grad
