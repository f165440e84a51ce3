"""A profile says what plain hooks see, whatever the batches; what did not run is listed, what broke is counted."""

from __future__ import annotations

import copy
from collections import defaultdict
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.errors import MeasurementError, UsageError
from quantaudit.measure import dealt
from quantaudit.measure.profile import Profile, merge, save_profile
from quantaudit.measure.run import measure, padded_samples
from quantaudit.measure.shard import Shard
from quantaudit.model.forward.batches import Batch, BatchLimit, PaddingSide, batch_of
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import discover
from quantaudit.provenance import ShardsInfo
from quantaudit.stats.site import summary
from tests.builders import (
    PAD,
    accumulate,
    differences,
    hooks,
    load,
    loaded_from,
    random_corpus,
    save_checkpoint,
    tiny_model,
    tiny_tokenizer,
)
from tests.builders import (
    sample as one_sample,
)


def measure_padded(loaded: LoadedModel, corpus: TokenizedCorpus, batch_size: int, side: PaddingSide) -> Profile:
    """`measure` with batches padded on this side, which it pads on the right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dealt, "batch_of", partial(batch_of, side=side))
        return measure(loaded, corpus, batch=BatchLimit(batch_size))


Captured = dict[str, dict[int, Tensor]]
"""Site → sample → tensor [tokens, channels]."""


def plain_capture(model: nn.Module, corpus: TokenizedCorpus, batch_size: int = 1, side: str = "right") -> Captured:
    """Every site's tensors, sample by sample and without padding, by hooks of the test's own."""
    seen: Captured = defaultdict(dict)
    batch: list[TokenizedSample] = []
    handles = []
    for site in discover(model).sites:

        def keep(value: Any, name: str = site.name, module: str = site.module) -> None:
            tensor = value if isinstance(value, Tensor) else value[0]
            if name.endswith(".gate") and module.endswith("gate_up_proj"):
                tensor = tensor[..., : tensor.shape[-1] // 2]
            for row, sample in zip(tensor.detach(), batch, strict=True):
                valid = row[: len(sample.ids)] if side == "right" else row[len(row) - len(sample.ids) :]
                seen[name][sample.index] = valid.clone()

        module = model.get_submodule(site.module)
        if site.tap == "input":
            hook = lambda _m, args, kwargs, keep=keep: keep((*args, *kwargs.values()))  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(lambda _m, _a, output, keep=keep: keep(output)))
    longest_first = sorted(corpus.samples, key=lambda sample: (-len(sample.ids), sample.index))
    for start in range(0, len(longest_first), batch_size):
        batch[:] = longest_first[start : start + batch_size]
        lengths = [len(sample.ids) for sample in batch]
        ids = torch.full((len(batch), max(lengths)), PAD)
        mask = torch.zeros_like(ids)
        for row, sample in enumerate(batch):
            first = 0 if side == "right" else ids.shape[1] - lengths[row]
            ids[row, first : first + lengths[row]] = torch.from_numpy(sample.ids)
            mask[row, first : first + lengths[row]] = 1
        padded = {} if mask.all() else {"attention_mask": mask}
        if padded and side == "left":
            padded["position_ids"] = torch.stack([torch.arange(ids.shape[1]) - (row == 0).sum() for row in mask]).clamp(
                min=0
            )
        with torch.no_grad():
            model(input_ids=ids, use_cache=False, **padded)
    for handle in handles:
        handle.remove()
    return seen


@pytest.fixture(scope="module")
def captured(tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus) -> Captured:
    return plain_capture(tiny_loaded.model, tiny_corpus)


def saved(profile: Profile, path: Path) -> bytes:
    save_profile(profile, path)
    return path.read_bytes()


# Against plain hooks -------------------------------------------------------------------------------------------------


def test_every_site_has_statistics_in_both_splits(tiny_profile: Profile) -> None:
    assert len(tiny_profile.sites) == 3 * 8 + 3
    for site in tiny_profile.sites:
        for split in ("calibration", "evaluation"):
            assert tiny_profile.split(site.name, split) is not None, site.name
    assert tiny_profile.provenance.unmeasured == []


def test_every_number_of_every_site_is_that_of_the_captured_tensors(
    tiny_profile: Profile, tiny_corpus: TokenizedCorpus, captured: Captured
) -> None:
    for site in tiny_profile.sites:
        for split in ("calibration", "evaluation"):
            actual = tiny_profile.split(site.name, split)
            own = [s for s in tiny_corpus.samples if s.split == split]
            tensors = [captured[site.name][s.index] for s in own]
            raw = torch.cat(tensors).double().numpy()
            assert actual is not None
            assert actual.tokens == sum(len(s.ids) for s in own)
            assert actual.distribution.counts.sum() == raw.size
            described = summary(actual)
            assert (described.min, described.max, described.amax) == (raw.min(), raw.max(), np.abs(raw).max())
            assert described.median == np.quantile(np.abs(raw), 0.5, method="inverted_cdf")
            assert described.p999 == np.quantile(np.abs(raw), 0.999, method="inverted_cdf")
            assert described.rms == pytest.approx(float(np.sqrt(np.mean(raw**2))), rel=1e-12)
            np.testing.assert_array_equal(actual.channel_amax, np.abs(raw).max(0))
            assert actual.extremes.sample.tolist() == [s.index for s in own]
            assert actual.extremes.min.tolist() == [float(t.min()) for t in tensors]
            assert actual.extremes.max.tolist() == [float(t.max()) for t in tensors]


def test_every_peak_is_where_the_captured_tensors_have_it(
    tiny_profile: Profile, tiny_corpus: TokenizedCorpus, captured: Captured
) -> None:
    ids = {s.index: s.ids for s in tiny_corpus.samples}
    for (name, split), actual in tiny_profile.statistics.items():
        rows = [
            (-abs(value), s.index, position, channel, value, int(ids[s.index][position]))
            for s in tiny_corpus.samples
            if s.split == split
            for position, channels in enumerate(captured[name][s.index].double().tolist())
            for channel, value in enumerate(channels)
            if value
        ]
        rows.sort()
        p = actual.peaks
        peaks = zip(p.value.tolist(), p.sample.tolist(), p.position.tolist(), p.token.tolist(), p.channel.tolist())  # noqa: B905
        assert list(peaks) == [(v, s, pos, tok, ch) for _, s, pos, ch, v, tok in rows[:100]], (name, split)


def test_tokens_at_peaks_are_spelled_out(tiny_profile: Profile, tiny_loaded: LoadedModel) -> None:
    met = {int(token) for value in tiny_profile.statistics.values() for token in value.peaks.token}
    texts = tiny_profile.provenance.token_text
    assert set(texts) == met
    assert all(text == tiny_loaded.tokenizer.decode([token]) for token, text in texts.items())


def test_the_provenance_describes_the_run(
    tiny_profile: Profile, tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus
) -> None:
    actual = tiny_profile.provenance
    assert actual.model == tiny_loaded.info
    assert actual.corpus == tiny_corpus.info
    assert actual.samples == tiny_corpus.sample_infos()
    assert (actual.environment.device, actual.environment.batch_size) == ("cpu", 1)
    assert actual.environment.packages["torch"] == torch.__version__
    assert actual.environment.attention == tiny_loaded.model.config._attn_implementation


def test_progress_is_given_every_token_once(tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus) -> None:
    steps: list[int] = []
    measure(tiny_loaded, tiny_corpus, batch=BatchLimit(4), progress=lambda amount=1: steps.append(amount))
    assert sum(steps) == tiny_corpus.info.tokens
    assert len(steps) == 5


def test_the_model_keeps_neither_hooks_nor_changes(tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus) -> None:
    ids = torch.from_numpy(tiny_corpus.samples[0].ids)[None]
    with torch.no_grad():
        before = tiny_loaded.model(input_ids=ids, use_cache=False).logits
        count = hooks(tiny_loaded.model)
        measure(tiny_loaded, tiny_corpus)
        after = tiny_loaded.model(input_ids=ids, use_cache=False).logits
    assert hooks(tiny_loaded.model) == count
    assert torch.equal(before, after)


# The same numbers again ----------------------------------------------------------------------------------------------


def test_two_runs_give_the_same_bytes(
    tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus, tiny_profile: Profile, tmp_path: Path
) -> None:
    again = measure(tiny_loaded, tiny_corpus)
    assert saved(again, tmp_path / "a") == saved(tiny_profile, tmp_path / "b")


def test_the_same_checkpoint_loaded_again_gives_the_same_bytes(
    tiny_folder: Path, tiny_corpus: TokenizedCorpus, tiny_profile: Profile, tmp_path: Path
) -> None:
    assert saved(measure(load(tiny_folder), tiny_corpus), tmp_path / "a") == saved(tiny_profile, tmp_path / "b")


def shard(corpus: TokenizedCorpus, part: int, parts: int) -> TokenizedCorpus:
    return TokenizedCorpus(samples=corpus.samples[part::parts], info=corpus.info)


def test_shards_of_the_corpus_merge_to_the_bytes_of_the_whole(
    tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus, tiny_profile: Profile, tmp_path: Path
) -> None:
    """As ranks do: each runs its own samples, all know the whole list."""
    shards = []
    for part in range(3):
        actual = measure(tiny_loaded, shard(tiny_corpus, part, 3))
        provenance = actual.provenance.model_copy(update={"samples": tiny_corpus.sample_infos()})
        shards.append(Profile(provenance=provenance, statistics=actual.statistics))
    a, b, c = shards
    whole = saved(tiny_profile, tmp_path / "whole")
    assert saved(merge(merge(a, b), c), tmp_path / "abc") == whole
    assert saved(merge(c, merge(b, a)), tmp_path / "cba") == whole


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (2, 1), (3, 1), (2, 4), (3, 5)])
def test_dealt_shards_merge_to_the_bytes_of_one_run(
    tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus, count: int, batch_size: int, tmp_path: Path
) -> None:
    whole = measure(tiny_loaded, tiny_corpus, batch=BatchLimit(batch_size))
    parts = [
        measure(tiny_loaded, tiny_corpus, batch=BatchLimit(batch_size), shard=Shard(index, count))
        for index in range(1, count + 1)
    ]
    assert saved(reduce(merge, parts), tmp_path / "merged") == saved(whole, tmp_path / "whole")
    assert saved(reduce(merge, reversed(parts)), tmp_path / "other") == saved(whole, tmp_path / "whole")
    if count > 1:
        held = [part.provenance.shards for part in parts]
        assert held == [ShardsInfo(count=count, held=[index]) for index in range(1, count + 1)]


def test_more_shards_than_batches_are_refused(tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus) -> None:
    with pytest.raises(UsageError, match="cannot be divided into 6 shards"):
        measure(tiny_loaded, tiny_corpus, batch=BatchLimit(4), shard=Shard(1, 6))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_batches_change_no_count_and_no_number_where_the_forward_is_bit_equal(
    tmp_path: Path, tiny_corpus: TokenizedCorpus, dtype: torch.dtype, side: PaddingSide
) -> None:
    """Padded attention may round otherwise: where it does, the test says so and asks for closeness instead."""
    loaded = load(save_checkpoint(tmp_path / "m", tiny_model("llama", dtype=dtype)))
    one, eight = (measure_padded(loaded, tiny_corpus, size, side) for size in (1, 8))
    alone, together = (plain_capture(loaded.model, tiny_corpus, size, side) for size in (1, 8))
    assert one.statistics.keys() == eight.statistics.keys()
    moved = []
    for (name, split), a in one.statistics.items():
        b = eight.statistics[name, split]
        own = [s.index for s in tiny_corpus.samples if s.split == split]
        assert (a.tokens, a.distribution.counts.sum()) == (b.tokens, b.distribution.counts.sum())
        assert a.extremes.sample.tolist() == b.extremes.sample.tolist() == own
        assert a.extremes.tokens.tolist() == b.extremes.tokens.tolist()
        if all(torch.equal(alone[name][i], together[name][i]) for i in own):
            assert differences(a, b) == [], name
        else:
            moved.append(f"{name} ({split})")
            x, y = summary(a), summary(b)
            assert (y.amax, y.rms, y.median) == pytest.approx((x.amax, x.rms, x.median), rel=0.05)
    # What is read before any attention ran is the same in every batch.
    assert not [row for row in moved if row.startswith(("embedding", "layers.0.self_attn.qkv_proj.input"))]
    print(f"{dtype}: {len(moved)} of {len(one.statistics)} tensors are not bit-equal at batch size 8: {moved[:3]}")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batch_size", [3, 8, 50])
def test_at_any_batch_size_the_statistics_are_of_the_unpadded_tensors(
    tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus, batch_size: int, side: PaddingSide
) -> None:
    profile = measure_padded(tiny_loaded, tiny_corpus, batch_size, side)
    seen = plain_capture(tiny_loaded.model, tiny_corpus, batch_size, side)
    for (name, split), actual in profile.statistics.items():
        own = [s for s in tiny_corpus.samples if s.split == split]
        assert differences(actual, accumulate((s.index, seen[name][s.index], s.ids) for s in own)) == [], name


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batch_size", [2, 8, 50])
def test_the_padding_tokens_own_embedding_changes_nothing(
    tmp_path: Path, tiny_corpus: TokenizedCorpus, side: PaddingSide, batch_size: int
) -> None:
    """Were a single padded position counted, these values would be the peaks of every site."""
    model = tiny_model("llama")
    assert not any((s.ids == PAD).any() for s in tiny_corpus.samples)
    profiles = []
    for value in (0.01, 3e4):
        with torch.no_grad():
            model.get_input_embeddings().weight[PAD] = value
        loaded = load(save_checkpoint(tmp_path / str(value), model))
        assert loaded.tokenizer.pad_token_id == PAD
        profiles.append(measure_padded(loaded, tiny_corpus, batch_size, side))
    a, b = profiles
    assert a.statistics.keys() == b.statistics.keys()
    assert {key: differences(a.statistics[key], b.statistics[key]) for key in a.statistics} == {
        key: [] for key in a.statistics
    }
    assert summary(b.whole("embedding")).amax < 3e4


def test_the_planted_padding_is_met_where_padding_is_not_left_out(
    tmp_path: Path, tiny_corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above would notice: with every column counted, the planted value is the peak."""
    model = tiny_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[PAD] = 3e4
    loaded = load(save_checkpoint(tmp_path / "m", model))
    met = []
    monkeypatch.setattr(
        Batch, "split_by_sample", lambda self, x, site: met.append((site, float(x.abs().max()))) or iter(())
    )
    measure_padded(loaded, tiny_corpus, 8, "left")
    assert max(amax for site, amax in met if site == "embedding") == pytest.approx(3e4, rel=0.01)


@pytest.mark.parametrize("name", ["qwen3-moe", "mamba2", "opt", "gpt2"])
def test_both_padding_sides_count_the_same_in_families_that_place_tokens_otherwise(
    tiny_loaded: LoadedModel, name: str
) -> None:
    """Routed experts, a recurrent state and learned positions: padding must shift none of them."""
    from quantaudit.model.experts import linearize
    from tests.families import family_model

    model = family_model(name)
    linearize(model)
    loaded, corpus = loaded_from(model, tiny_loaded), random_corpus([30, 21, 13, 8, 5, 3])
    one, right, left = (
        measure_padded(loaded, corpus, size, side) for size, side in ((1, "right"), (4, "right"), (4, "left"))
    )
    for key, a in one.statistics.items():
        if "experts" in key[0]:  # near-ties may route otherwise after other rounding
            continue
        for b in (right.statistics[key], left.statistics[key]):
            assert (a.tokens, a.distribution.counts.sum()) == (b.tokens, b.distribution.counts.sum()), key
            assert a.extremes.tokens.tolist() == b.extremes.tokens.tolist()
            assert summary(b).amax == pytest.approx(summary(a).amax, rel=0.1), key


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "mistral", "phi3", "qwen3", "olmo2"])
def test_other_families_are_measured_like_llama(tiny_loaded: LoadedModel, name: str) -> None:
    corpus = random_corpus([20, 11, 6, 3])
    loaded = loaded_from(tiny_model(name), tiny_loaded)
    profile, seen = measure(loaded, corpus, batch=BatchLimit(2)), plain_capture(loaded.model, corpus)
    assert profile.provenance.unmeasured == []
    for site in profile.sites:
        actual = profile.whole(site.name)
        assert actual is not None
        assert actual.tokens == 40
        assert actual.distribution.counts.sum() == 40 * seen[site.name][0].shape[-1]
        amax = max(float(tensor.abs().max()) for tensor in seen[site.name].values())
        assert summary(actual).amax == pytest.approx(amax, rel=0.05)


# What did not run, what broke ----------------------------------------------------------------------------------------


def test_a_linear_that_never_runs_is_listed_as_unmeasured(
    tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus
) -> None:
    model = copy.deepcopy(tiny_loaded.model)
    mlp = model.get_submodule("model.layers.1.mlp")
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)))
    profile = measure(loaded_from(model, tiny_loaded), tiny_corpus)
    assert [row.module for row in profile.provenance.unmeasured] == ["model.layers.1.mlp.up_proj"]
    assert "never ran" in profile.provenance.unmeasured[0].reason


def test_a_linear_whose_weights_are_used_without_it_is_listed_apart(
    tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus
) -> None:
    model = copy.deepcopy(tiny_loaded.model)
    mlp = model.get_submodule("model.layers.1.mlp")
    weight = mlp.up_proj.weight
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * (x @ weight.T))
    (row,) = measure(loaded_from(model, tiny_loaded), tiny_corpus).provenance.unmeasured
    assert row.module == "model.layers.1.mlp.up_proj"
    assert "although the module around it did" in row.reason


@pytest.mark.parametrize(
    ("ids", "padded"),
    [
        ([PAD, PAD, PAD], True),
        ([1, 2, PAD, PAD], True),
        ([PAD, PAD, 1, 2], True),
        ([1, 2, 3, PAD], False),
        ([PAD, 1, PAD], False),
        ([1, PAD, PAD, 2], False),
        ([PAD], False),
    ],
)
def test_samples_that_begin_or_end_in_padding_are_named(tiny_loaded: LoadedModel, ids: list[int], padded: bool) -> None:
    corpus = random_corpus([5, 4, 3])
    built = TokenizedCorpus(samples=(*corpus.samples, one_sample(ids, index=3)), info=corpus.info)
    assert padded_samples(tiny_loaded, built) == (["s3"] if padded else [])


def test_a_model_that_knows_no_padding_token_has_no_padded_samples(tiny_loaded: LoadedModel) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = None
    bare = LoadedModel(model=tiny_loaded.model, tokenizer=tokenizer, info=tiny_loaded.info)
    corpus = TokenizedCorpus(samples=(one_sample([0, 0, 0]),), info=random_corpus([2, 2]).info)
    assert padded_samples(bare, corpus) == []


def test_a_layer_that_is_skipped_is_listed_with_all_its_tensors(
    tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus
) -> None:
    model = copy.deepcopy(tiny_loaded.model)
    attention = model.get_submodule("model.layers.2.self_attn")
    layer = model.get_submodule("model.layers.2")
    layer.forward = lambda hidden, *_, **__: hidden
    profile = measure(loaded_from(model, tiny_loaded), tiny_corpus)
    listed = {row.module for row in profile.provenance.unmeasured}
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and ".2." in name}
    assert len(linears) == 7
    assert listed == linears | {"layers.2.self_attn.output", "layers.2.mlp.gate", "layers.2.mlp.output"}
    silent = [site.name for site in profile.sites if profile.whole(site.name) is None]
    assert all(name.startswith("layers.2.") for name in silent)
    assert len(silent) == 7
    assert profile.whole("layers.2.output") is not None
    assert attention is not None


def test_nan_weights_are_counted_from_their_layer_on(tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus) -> None:
    model = copy.deepcopy(tiny_loaded.model)
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.down_proj").weight[3, :] = float("nan")
    profile = measure(loaded_from(model, tiny_loaded), tiny_corpus)
    broken = []
    for site in profile.sites:
        actual = profile.whole(site.name)
        assert actual is not None
        if summary(actual).nan:
            broken.append(site.name)
    names = [site.name for site in profile.sites]
    assert broken == names[names.index("layers.1.mlp.output") :]
    output = profile.whole("layers.1.mlp.output")
    assert output is not None
    described = summary(output)
    assert described.nan == output.tokens
    assert np.isfinite(described.amax)
    assert np.flatnonzero(np.isnan(output.channel_amax)).tolist() == [3]
    assert 3 not in output.peaks.channel


def test_infinite_activations_are_counted(tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus) -> None:
    model = copy.deepcopy(tiny_loaded.model)
    with torch.no_grad():
        model.get_submodule("model.layers.0.mlp.up_proj").weight[5] = 3e38
    profile = measure(loaded_from(model, tiny_loaded), tiny_corpus)
    actual = profile.whole("layers.0.mlp.down_proj.input")
    assert actual is not None
    described = summary(actual)
    assert described.inf + described.nan > 0
    assert np.isfinite(described.amax)
    assert summary(profile.whole("layers.0.mlp.gate_up_proj.input")).inf == 0


def test_an_error_in_the_forward_leaves_no_hooks(tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus) -> None:
    model = copy.deepcopy(tiny_loaded.model)

    def fail(*_: object) -> None:
        raise RuntimeError("broken forward")

    model.get_submodule("model.layers.1.mlp").forward = fail
    before = hooks(model)
    with pytest.raises(MeasurementError, match="broken forward"):
        measure(loaded_from(model, tiny_loaded), tiny_corpus)
    assert hooks(model) == before
