"""A user's own loop sees what `measure` sees, whatever the batches and wherever the padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import quantaudit
from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.errors import MeasurementError
from quantaudit.measure.profile import Profile, load_profile, save_profile
from quantaudit.measure.run import measure
from quantaudit.model.forward.batches import BatchLimit
from quantaudit.model.loading.load import LoadedModel
from tests.builders import PAD, differences, hooks, load, random_corpus, save_checkpoint
from tests.families import family_model

Batches = list[list[TokenizedSample]]


def by_one(samples: list[TokenizedSample]) -> Batches:
    return [[sample] for sample in samples]


def by_four(samples: list[TokenizedSample]) -> Batches:
    return [samples[start : start + 4] for start in range(0, len(samples), 4)]


def padded(rows: list[TokenizedSample], side: str) -> dict[str, torch.Tensor]:
    """Batch of these samples; what fills it up is an ordinary token, so that only the mask says which is which."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), 7 if side == "right" else PAD)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(rows):
        length = len(sample.ids)
        where = slice(0, length) if side == "right" else slice(width - length, width)
        ids[row, where] = torch.from_numpy(sample.ids)
        mask[row, where] = 1
    return {"input_ids": ids, "attention_mask": mask}


def loop(loaded: LoadedModel, batches: Batches, side: str = "right", **options: Any) -> Profile:
    """A user's loop: splits as the corpus has them."""
    with torch.no_grad(), quantaudit.observe(loaded.model, **options) as observation:
        for rows in batches:
            observation.split = rows[0].split
            loaded.model(**padded(rows, side))
    return observation.profile()


def test_the_histograms_are_those_of_measure(tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus) -> None:
    """One sample a batch, in the order of `measure`: the very same bits, position by position."""
    order = sorted(tiny_corpus.samples, key=lambda sample: (-len(sample.ids), sample.index))
    seen = loop(tiny_loaded, by_one(order))
    expected = measure(tiny_loaded, tiny_corpus)
    assert seen.statistics.keys() == expected.statistics.keys()
    for key, value in expected.statistics.items():
        actual = seen.statistics[key]
        assert not differences(actual.distribution, value.distribution), key
        assert np.array_equal(actual.channel_amax, value.channel_amax)
        for name in ("value", "position", "token", "channel"):
            assert np.array_equal(np.sort(getattr(actual.peaks, name)), np.sort(getattr(value.peaks, name))), (
                key,
                name,
            )
    assert seen.provenance.unmeasured == []
    assert seen.sites == expected.sites


@pytest.mark.parametrize("split", ["calibration", "evaluation"])
def test_padded_batches_with_a_mask_give_the_histograms_of_measure(
    tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus, split: str
) -> None:
    """The same batches: bits depend on a batch's shape. Padding is masked, and enters no statistic."""
    own = [sample for sample in tiny_corpus.samples if sample.split == split]
    order = sorted(own, key=lambda sample: (-len(sample.ids), sample.index))
    seen = loop(tiny_loaded, by_four(order))
    corpus = TokenizedCorpus(samples=tuple(own), info=tiny_corpus.info)
    expected = measure(tiny_loaded, corpus, batch=BatchLimit(4))
    assert seen.statistics.keys() == expected.statistics.keys()
    for key, value in expected.statistics.items():
        assert not differences(seen.statistics[key].distribution, value.distribution), key


def test_padding_on_the_left_is_left_out(tiny_loaded: LoadedModel) -> None:
    """Of the embeddings, which do not depend on positions, exactly; elsewhere by count."""
    samples = list(random_corpus([9, 5, 3, 2]).samples)
    rows = [[TokenizedSample(index=s.index, id=s.id, domain=s.domain, split="calibration", ids=s.ids) for s in samples]]
    left, right = loop(tiny_loaded, rows, side="left"), loop(tiny_loaded, rows, side="right")
    key = ("embedding", "calibration")
    assert not differences(left.statistics[key].distribution, right.statistics[key].distribution)
    assert np.array_equal(np.sort(left.statistics[key].peaks.position), np.sort(right.statistics[key].peaks.position))
    for value in left.statistics.values():
        assert value.tokens == 9 + 5 + 3 + 2


def test_experts_are_followed_through_a_masked_batch(tmp_path: Any) -> None:
    loaded = load(save_checkpoint(tmp_path / "moe", family_model("qwen3-moe")))
    corpus = random_corpus([30, 25, 25, 20, 9, 9])
    order = sorted(corpus.samples, key=lambda sample: (-len(sample.ids), sample.index))
    expected = measure(loaded, corpus, batch=BatchLimit(6))
    with torch.no_grad(), quantaudit.observe(loaded.model) as observation:
        loaded.model(**padded(order, "right"))
    seen = observation.profile()
    compared = 0
    for site in expected.sites:
        whole, actual = expected.whole(site.name), seen.whole(site.name)
        if whole is not None and actual is not None:
            compared += site.kind == "expert_input"
            assert not differences(actual.distribution, whole.distribution), site.name
            assert np.array_equal(np.sort(actual.peaks.position), np.sort(whole.peaks.position)), site.name
    assert compared


def test_hooks_are_gone_afterwards(tiny_loaded: LoadedModel) -> None:
    before = hooks(tiny_loaded.model)
    with quantaudit.observe(tiny_loaded.model):
        assert hooks(tiny_loaded.model) > before
    assert hooks(tiny_loaded.model) == before
    with pytest.raises(ZeroDivisionError), quantaudit.observe(tiny_loaded.model):
        raise ZeroDivisionError
    assert hooks(tiny_loaded.model) == before


def test_the_profile_can_be_taken_within_and_saved(tiny_loaded: LoadedModel, tmp_path: Any) -> None:
    ids = torch.arange(12)[None]
    with torch.no_grad(), quantaudit.observe(tiny_loaded.model, tokenizer=tiny_loaded.tokenizer) as observation:
        tiny_loaded.model(ids)
        within = observation.profile()
    path = tmp_path / "p.safetensors"
    save_profile(within, path)
    again = load_profile(path)
    assert again.provenance == within.provenance
    assert again.provenance.unmeasured == []
    assert again.provenance.model.fingerprint.startswith("memory:")
    assert again.provenance.corpus.tokens == 12
    assert set(again.provenance.token_text) <= set(range(12))
    assert again.provenance.token_text


def test_other_weights_are_another_model(tiny_loaded: LoadedModel) -> None:
    def fingerprint() -> str:
        with quantaudit.observe(tiny_loaded.model) as observation:
            return observation.info.fingerprint

    weight = tiny_loaded.model.get_submodule("model.layers.1.mlp.down_proj").weight
    first = fingerprint()
    original = weight.data[0, 0].clone()
    try:
        weight.data[0, 0] = original + 1
        assert fingerprint() != first
    finally:
        weight.data[0, 0] = original
    assert fingerprint() == first


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: model(inputs_embeds=torch.zeros(1, 3, 64).bfloat16()), "without 2-D input_ids"),
        (
            lambda model: model(torch.arange(3)[None], attention_mask=torch.ones(1, 1, 3, 3).bool()),
            "attention mask has another shape",
        ),
        (lambda model: model.model(input_ids=torch.arange(3)[None]), "outside a forward pass"),
        (
            lambda model: model(
                input_ids=torch.arange(3)[None],
                past_key_values=model(input_ids=torch.arange(5)[None], use_cache=True).past_key_values,
            ),
            "filled cache",
        ),
    ],
)
def test_tokens_that_are_not_known_are_an_error(
    tiny_loaded: LoadedModel, call: Callable[[Any], Any], words: str
) -> None:
    before = hooks(tiny_loaded.model)
    with torch.no_grad(), pytest.raises(MeasurementError, match=words), quantaudit.observe(tiny_loaded.model):
        call(tiny_loaded.model)
    assert hooks(tiny_loaded.model) == before


def test_nothing_seen_is_an_error(tiny_loaded: LoadedModel) -> None:
    with quantaudit.observe(tiny_loaded.model) as observation, pytest.raises(MeasurementError, match="no tokens"):
        observation.profile()
