"""Scores of a recipe equal those of a quantized copy, computed in float64 with SciPy; the model is left as it was."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
import torch
from pydantic import ValidationError
from torch import nn

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import MeasurementError
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Architecture, Group, discover
from quantaudit.quant.observers import QParams
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC, Scheme
from quantaudit.simulate.logits import kl as divergence
from quantaudit.simulate.logits import score_plans as logits
from quantaudit.simulate.logits.aggregate import SampleScore, recipe_row
from quantaudit.simulate.logits.kl import Scratch, compare, confident, token_stats
from quantaudit.simulate.logits.score_plans import Hidden, score_plans
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.simulate.records import TokenSpread
from quantaudit.simulate.replay.replay_groups import block_damage
from tests.builders import hooks, sample, tiny_model, weight_bytes
from tests.unit.simulate.reference import WEIGHTS_ONLY, experiment, quantized_copy, run

QParamsByGroup = dict[str, QParams | None]


def plan(name: str, groups: list[Group], schemes: dict[str, Scheme], qparams: QParamsByGroup) -> Plan:
    architecture = Architecture(blocks=(), sites=(), groups=tuple(groups))
    what = experiment(nn.Module(), architecture, [], [], {scheme.name: qparams for scheme in schemes.values()})
    return Plan.of_groups(what, name=name, title=name.title(), schemes=schemes)


@pytest.fixture
def groups(architecture: Architecture) -> list[Group]:
    return [group for group in architecture.groups if group.layer is not None]


@pytest.fixture
def plans(groups: list[Group], qparams: QParamsByGroup) -> list[Plan]:
    """Static, dynamic, weights only, a mixture, one group alone, and nothing at all."""
    names = [group.name for group in groups]
    mixture = {name: (INT8_STATIC, INT8_DYNAMIC, WEIGHTS_ONLY)[i % 3] for i, name in enumerate(names)}
    return [
        plan("static", groups, dict.fromkeys(names, INT8_STATIC), qparams),
        plan("dynamic", groups, dict.fromkeys(names, INT8_DYNAMIC), {}),
        plan("weights", groups, dict.fromkeys(names, WEIGHTS_ONLY), {}),
        plan("mixture", groups, mixture, qparams),
        plan("alone", groups, {names[3]: INT8_STATIC}, qparams),
        plan("nothing", groups, {}, {}),
    ]


def log_probabilities(logits: torch.Tensor) -> np.ndarray:
    return torch.log_softmax(logits.double(), -1).numpy()


def test_scores_are_those_of_a_quantized_copy_in_float64(
    tiny_loaded: LoadedModel, groups: list[Group], samples: list[TokenizedSample], plans: list[Plan]
) -> None:
    rows = score_plans(tiny_loaded.model, samples, plans)
    assert [row.name for row in rows] == [p.name for p in plans]
    for row, p in zip(rows, plans, strict=True):
        chosen = [g for g in groups if g.members[0] in p.schemes]
        schemes = {g.name: p.schemes[g.members[0]] for g in chosen}
        ranges = {g.name: p.qparams[g.members[0]] for g in chosen}
        other = quantized_copy(tiny_loaded.model, groups, schemes, ranges)
        kls, agreed, losses, base_losses = [], [], [], []
        for s in samples:
            base, changed = log_probabilities(run(tiny_loaded.model, s)), log_probabilities(run(other, s))
            kls.append(scipy.special.rel_entr(np.exp(base), np.exp(changed)).sum(-1))
            agreed.append(base.argmax(-1) == changed.argmax(-1))
            position = np.arange(len(s.ids) - 1)
            losses.append(-changed[position, s.ids[1:]])
            base_losses.append(-base[position, s.ids[1:]])
        kl = np.concatenate(kls)
        assert row.kl == pytest.approx(kl.mean(), rel=1e-4, abs=1e-7)
        assert row.top1 == pytest.approx(np.concatenate(agreed).mean())
        assert row.perplexity == pytest.approx(math.exp(np.concatenate(losses).mean()), rel=1e-5)
        assert row.perplexity_base == pytest.approx(math.exp(np.concatenate(base_losses).mean()), rel=1e-5)
        assert (row.tokens, row.samples, row.groups) == (len(kl), len(samples), len(schemes))
        assert not row.nonfinite

        # The ratio estimator's standard error over samples: residuals of sums about the common mean.
        residuals = np.array([sums.sum() - len(sums) * kl.mean() for sums in kls])
        n = len(samples)
        expected = math.sqrt(residuals @ residuals * n / (n - 1)) / len(kl)
        assert row.kl_stderr == pytest.approx(expected, rel=1e-3, abs=1e-7)

        spread, ranked = row.by_token, np.sort(kl)
        assert spread is not None
        places = [math.ceil(share * len(kl)) - 1 for share in (0.5, 0.9, 0.99, 1.0)]
        shown = [spread.median, spread.p90, spread.p99, spread.max]
        assert shown == pytest.approx([ranked[place] for place in places], rel=1e-3, abs=1e-6)

        for domain, score in row.domains.items():
            indices = [k for k, s in enumerate(samples) if s.domain == domain]
            assert score.tokens == sum(len(samples[k].ids) for k in indices)
            assert score.kl == pytest.approx(np.concatenate([kls[k] for k in indices]).mean(), rel=1e-4, abs=1e-7)
            assert score.top1 == pytest.approx(np.concatenate([agreed[k] for k in indices]).mean())
        assert set(row.domains) == {s.domain for s in samples}


def test_clear_choices_are_those_of_one_half_and_flips_are_counted_among_them(samples: list[TokenizedSample]) -> None:
    z = torch.tensor([[0.0, 0.1, -9.0], [5.0, 0.0, 0.0], [2.0, 9.0, 2.0], [1.0, 1.0, 1.0]])
    stats = token_stats(z, torch.tensor([0, 0, 0]), Scratch())
    clear = confident(z, stats).numpy()
    assert clear.tolist() == (torch.softmax(z.double(), -1).amax(-1) >= 0.5).tolist() == [True, True, True, False]
    one = replace(samples[0], ids=samples[0].ids[:4])
    score = SampleScore(
        sample=one,
        kl=np.array([0.1, 0.4, 0.2, 0.3]),
        agreed=np.array([True, False, True, False]),
        confident=clear,
        loss=np.zeros(3),
        loss_base=np.zeros(3),
        drift=np.zeros(0),
    )
    plan = Plan(name="a", title="", schemes={}, qparams={}, groups=0)
    spread = recipe_row(plan, [score]).by_token
    assert spread is not None
    assert (spread.median, spread.p90, spread.p99, spread.max) == (0.2, 0.4, 0.4, 0.4)
    assert (spread.confident, spread.flipped) == (3, pytest.approx(1 / 3))
    broken = replace(score, kl=np.array([0.1, math.nan, 0.2, 0.3]))
    assert recipe_row(plan, [broken]).by_token is None
    with pytest.raises(ValidationError, match="do not rise"):
        TokenSpread(median=2.0, p90=1.0, p99=3.0, max=4.0, confident=0, flipped=None)


def test_the_assistants_turns_are_scored_apart(
    tiny_loaded: LoadedModel, groups: list[Group], samples: list[TokenizedSample], plans: list[Plan]
) -> None:
    """Positions whose next token is marked, in float64 with SciPy; a mask may reach beyond a cut sample."""
    rng = np.random.default_rng(0)
    masks = {s.index: rng.random(len(s.ids) + 5) < 0.4 for s in samples[:-2]}
    masks[samples[0].index][:] = False
    marked = [replace(s, assistant=masks.get(s.index)) for s in samples]
    row, plain = (score_plans(tiny_loaded.model, chosen, plans[:1])[0] for chosen in (marked, samples))
    assert (row.kl, row.perplexity) == (plain.kl, plain.perplexity)
    assert (plain.assistant, plain.assistant_domains) == (None, {})

    schemes = {g.name: plans[0].schemes[g.members[0]] for g in groups}
    ranges = {g.name: plans[0].qparams[g.members[0]] for g in groups}
    other = quantized_copy(tiny_loaded.model, groups, schemes, ranges)
    kls: dict[str, list[np.ndarray]] = {}
    losses = []
    for s in samples[1:-2]:
        where = masks[s.index][1 : len(s.ids)].nonzero()[0]
        base, changed = log_probabilities(run(tiny_loaded.model, s)), log_probabilities(run(other, s))
        kls.setdefault(s.domain, []).append(scipy.special.rel_entr(np.exp(base), np.exp(changed)).sum(-1)[where])
        losses.append(-changed[where, s.ids[where + 1]])
    every = np.concatenate([kl for of_domain in kls.values() for kl in of_domain])
    assert row.assistant is not None
    assert row.assistant.tokens == len(every)
    assert row.assistant.kl == pytest.approx(every.mean(), rel=1e-4)
    assert row.assistant.perplexity == pytest.approx(math.exp(np.concatenate(losses).mean()), rel=1e-5)
    for domain, of_domain in kls.items():
        if not sum(len(kl) for kl in of_domain):
            assert domain not in row.assistant_domains
            continue
        score = row.assistant_domains[domain]
        assert score.kl == pytest.approx(np.concatenate(of_domain).mean(), rel=1e-4)
        assert score.samples == sum(len(kl) > 0 for kl in of_domain)


def test_a_plan_without_schemes_scores_exactly_nothing(
    tiny_loaded: LoadedModel, groups: list[Group], samples: list[TokenizedSample], plans: list[Plan]
) -> None:
    """After other plans have run, so that nothing of theirs may linger."""
    row = score_plans(tiny_loaded.model, samples, plans)[-1]
    assert (row.kl, row.kl_stderr, row.top1) == (0.0, 0.0, 1.0)
    assert row.perplexity == row.perplexity_base
    assert {score.kl for score in row.domains.values()} == {0.0}


def test_quantizing_more_costs_more(
    tiny_loaded: LoadedModel, groups: list[Group], samples: list[TokenizedSample], plans: list[Plan]
) -> None:
    kl = {row.name: row.kl or 0.0 for row in score_plans(tiny_loaded.model, samples, plans)}
    assert kl["static"] > kl["weights"] > 0
    assert kl["static"] > kl["alone"] > 0


@pytest.mark.parametrize("budget", [1, 30, 50])
def test_rounds_of_a_few_samples_score_as_one_round_does(
    tiny_loaded: LoadedModel,
    groups: list[Group],
    samples: list[TokenizedSample],
    plans: list[Plan],
    monkeypatch: pytest.MonkeyPatch,
    budget: int,
) -> None:
    whole = score_plans(tiny_loaded.model, samples, plans)
    vocabulary_bytes = tiny_loaded.info.vocab_size * 2
    monkeypatch.setattr(logits, "KEPT_BYTES", budget * vocabulary_bytes)
    assert score_plans(tiny_loaded.model, samples, plans) == whole


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_slices_of_positions_score_as_whole_samples_do(
    tiny_loaded: LoadedModel,
    groups: list[Group],
    samples: list[TokenizedSample],
    plans: list[Plan],
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    whole = score_plans(tiny_loaded.model, samples, plans[:1])[0]
    monkeypatch.setattr(divergence, "SLICE_BYTES", size * tiny_loaded.info.vocab_size * 4)
    sliced = score_plans(tiny_loaded.model, samples, plans[:1])[0]
    assert (sliced.kl, sliced.perplexity) == pytest.approx((whole.kl, whole.perplexity), rel=1e-9)
    assert (sliced.top1, sliced.tokens) == (whole.top1, whole.tokens)


def test_the_order_of_plans_does_not_matter(
    tiny_loaded: LoadedModel, groups: list[Group], samples: list[TokenizedSample], plans: list[Plan]
) -> None:
    forwards = score_plans(tiny_loaded.model, samples[:2], plans)
    backwards = score_plans(tiny_loaded.model, samples[:2], plans[::-1])
    assert forwards == backwards[::-1]


def test_progress_is_called_for_every_sample_and_plan(
    tiny_loaded: LoadedModel, groups: list[Group], samples: list[TokenizedSample], plans: list[Plan]
) -> None:
    calls: list[int] = []
    score_plans(tiny_loaded.model, samples, plans, progress=lambda amount=1: calls.append(amount))
    assert sum(calls) == len(samples) * len(plans)


def test_a_single_sample_has_no_standard_error(
    tiny_loaded: LoadedModel, groups: list[Group], samples: list[TokenizedSample], plans: list[Plan]
) -> None:
    assert score_plans(tiny_loaded.model, samples[:1], plans[:1])[0].kl_stderr is None


def test_propagation_is_the_change_of_every_blocks_output(
    tiny_loaded: LoadedModel,
    architecture: Architecture,
    groups: list[Group],
    samples: list[TokenizedSample],
    plans: list[Plan],
) -> None:
    """Against a quantized copy, with hidden states that transformers returns, in float64."""
    plan = plans[0]
    (row,) = score_plans(tiny_loaded.model, samples, [plan], blocks=architecture.blocks)
    schemes = {g.name: plan.schemes[g.members[0]] for g in groups}
    ranges = {g.name: plan.qparams[g.members[0]] for g in groups}
    models = tiny_loaded.model, quantized_copy(tiny_loaded.model, groups, schemes, ranges)
    expected = []
    for block in architecture.blocks[:-1]:  # the last entry of transformers' list is normalized
        total = 0.0
        for s in samples:
            states = []
            for model in models:
                with torch.no_grad():
                    out = model(input_ids=torch.from_numpy(s.ids)[None], use_cache=False, output_hidden_states=True)
                states.append(out.hidden_states[1 + architecture.blocks.index(block)][0].double())
            total += float(((states[1] - states[0]).square().sum(-1) / states[0].square().sum(-1)).sum())
        expected.append(total / sum(len(s.ids) for s in samples))
    assert row.propagation[:-1] == pytest.approx(expected, rel=1e-5)
    assert len(row.propagation) == len(architecture.blocks)
    nothing = score_plans(tiny_loaded.model, samples, [plans[-1]], blocks=architecture.blocks)[0]
    assert nothing.propagation == [0.0] * len(architecture.blocks)
    assert score_plans(tiny_loaded.model, samples[:1], [plan])[0].propagation == []


def test_drift_is_block_damage() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, changed = (torch.randn(1, 9, 33, generator=generator).mul(40).bfloat16() for _ in range(2))
    clean[0, 4] = 0
    drift = Hidden.of(clean).drift(changed)
    assert float(drift) == pytest.approx(float(block_damage(clean, changed)), rel=1e-6)
    assert float(Hidden.of(clean).drift(clean)) == 0
    assert drift.dtype == torch.float64


# Broken things -------------------------------------------------------------------------------------------------------


def test_a_group_without_range_is_left_alone_and_the_row_says_so(
    tiny_loaded: LoadedModel, groups: list[Group], samples: list[TokenizedSample], qparams: QParamsByGroup
) -> None:
    names = [group.name for group in groups]
    without = plan("without", groups, dict.fromkeys(names, INT8_STATIC), {**qparams, names[5]: None})
    other = plan("other", groups, {name: INT8_STATIC for name in names if name != names[5]}, qparams)
    assert without.unscaled == list(groups[5].members)
    partial, expected = score_plans(tiny_loaded.model, samples[:2], [without, other])
    assert (partial.kl, partial.perplexity) == (expected.kl, expected.perplexity)
    assert partial.nonfinite
    assert not expected.nonfinite


def test_scores_that_are_not_numbers_are_null(samples: list[TokenizedSample]) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    groups = [group for group in discover(model).groups if group.layer is not None]
    (row,) = score_plans(model, samples[:2], [plan("any", groups, {groups[0].name: INT8_DYNAMIC}, {})])
    assert row.nonfinite
    assert (row.kl, row.kl_stderr, row.top1) == (None, None, None)
    assert {(score.kl, score.top1) for score in row.domains.values()} == {(None, None)}


def test_the_divergence_is_the_textbooks() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(5, 300, generator=generator).mul(4).add(7) for _ in range(2))
    expected = scipy.special.rel_entr(*(x.double().softmax(-1).numpy() for x in (p, q))).sum(-1)
    targets = torch.tensor([3, 1, 4, 1])
    clean_stats = token_stats(p, targets, Scratch())
    changed, kl = compare(p, clean_stats, q, targets, Scratch())
    np.testing.assert_allclose(kl.numpy(), expected, rtol=1e-5)
    assert compare(p, clean_stats, p, targets, Scratch())[1].tolist() == [0.0] * 5
    for stats, x in ((clean_stats, p), (changed, q)):
        np.testing.assert_allclose(stats.normalizer.numpy(), x.double().logsumexp(-1).numpy(), rtol=1e-6)
        losses = -x.double().log_softmax(-1)[torch.arange(4), targets]
        np.testing.assert_allclose(stats.loss.numpy(), losses.numpy(), rtol=1e-5)
        assert torch.equal(stats.top, x.argmax(-1))


@pytest.mark.parametrize(("threads", "fit", "rows"), [(1, 5, 5), (2, 5, 4), (2, 2, 2), (3, 5, 3), (4, 1, 4), (7, 0, 7)])
def test_every_thread_gets_as_many_rows_and_slices_change_no_number(
    monkeypatch: pytest.MonkeyPatch, threads: int, fit: int, rows: int
) -> None:
    """fit: rows that a slice has room for; rows: those that it gets."""
    generator = torch.Generator().manual_seed(0)
    clean, changed = (torch.randn(9, 1001, generator=generator).mul(3).bfloat16() for _ in range(2))
    targets = torch.randint(0, 1001, (8,), generator=generator)

    def compared() -> tuple[torch.Tensor, ...]:
        clean_stats = token_stats(clean, targets, Scratch())
        stats, kl = compare(clean, clean_stats, changed, targets, Scratch())
        return clean_stats.top, stats.top, clean_stats.normalizer, clean_stats.loss, stats.normalizer, stats.loss, kl

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(divergence, "SLICE_BYTES", 1000 * 4 * 1001)
    whole = compared()
    monkeypatch.setattr(divergence, "SLICE_BYTES", fit * 4 * 1001)
    parts = [part for part, _ in Scratch().views(clean)]
    assert {part.stop - part.start for part in parts[:-1]} == {rows}
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == len(clean)
    for a, b in zip(whole, compared(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


# Housekeeping --------------------------------------------------------------------------------------------------------


def test_the_model_is_left_bit_for_bit_as_it_was(
    tiny_loaded: LoadedModel, groups: list[Group], samples: list[TokenizedSample], plans: list[Plan]
) -> None:
    before, count = weight_bytes(tiny_loaded.model), hooks(tiny_loaded.model)
    score_plans(tiny_loaded.model, samples, plans)
    assert weight_bytes(tiny_loaded.model) == before
    assert hooks(tiny_loaded.model) == count


def test_the_model_is_left_as_it_was_after_an_error_within_a_plan(
    tiny_loaded: LoadedModel,
    groups: list[Group],
    samples: list[TokenizedSample],
    plans: list[Plan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_loaded.model
    before, count = weight_bytes(model), hooks(model)
    exchanged: list[bool] = []

    def fail(*_: object) -> None:
        exchanged.append(weight_bytes(model) != before)
        raise RuntimeError("in the middle")

    monkeypatch.setattr(logits, "compare", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        score_plans(model, samples, plans)
    assert exchanged == [True]
    assert weight_bytes(model) == before
    assert hooks(model) == count


def test_a_tied_embedding_is_untouched_when_the_output_projection_is_quantized(
    samples: list[TokenizedSample],
) -> None:
    model = tiny_model("llama", tie_word_embeddings=True, num_hidden_layers=1)
    groups = list(discover(model).groups)
    outputs: list[torch.Tensor] = []
    model.get_input_embeddings().register_forward_hook(lambda _m, _a, output: outputs.append(output))
    before = weight_bytes(model)
    (row,) = score_plans(model, samples[:1], [plan("head", groups, {"lm_head": WEIGHTS_ONLY}, {})])
    assert row.kl is not None
    assert row.kl > 0
    assert len(outputs) == 2
    assert torch.equal(outputs[0], outputs[1])
    assert weight_bytes(model) == before
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_two_tokens_are_enough(tiny_loaded: LoadedModel, groups: list[Group], plans: list[Plan]) -> None:
    row = score_plans(tiny_loaded.model, [sample([5, 9])], plans[:1])[0]
    assert row.tokens == 2
    assert row.perplexity is not None


def test_a_block_that_the_model_skips_has_no_drift(samples: list[TokenizedSample]) -> None:
    model = tiny_model("llama", num_hidden_layers=3)
    architecture = discover(model)
    groups = [group for group in architecture.groups if group.layer == 0]
    plans = [plan("p", groups, {group.name: INT8_DYNAMIC for group in groups}, {})]
    (whole,) = score_plans(model, samples[:1], plans, blocks=architecture.blocks)
    # Named blocks that never run, as in models that share or drop layers.
    model.model.idle = copy.deepcopy(model.model.layers[0])
    blocks = [architecture.blocks[0], "model.idle", *architecture.blocks[1:]]
    (row,) = score_plans(model, samples[:1], plans, blocks=blocks)
    assert row.propagation == [whole.propagation[0], None, *whole.propagation[1:]]
    assert all(drift is not None and drift > 0 for drift in whole.propagation)


def test_placeholders_of_images_are_not_predicted(
    tiny_loaded: LoadedModel, samples: list[TokenizedSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = samples[0]
    images = np.zeros(len(sample.ids), bool)
    images[3:6] = True
    (plain,) = score_plans(tiny_loaded.model, [sample], [Plan(name="", title="", schemes={}, qparams={}, groups=0)])
    monkeypatch.setattr(TokenizedSample, "images", property(lambda self: images))
    (row,) = score_plans(tiny_loaded.model, [sample], [Plan(name="", title="", schemes={}, qparams={}, groups=0)])
    log_p = log_probabilities(run(tiny_loaded.model, sample))
    loss = -log_p[np.arange(len(sample.ids) - 1), sample.ids[1:]]
    assert row.perplexity_base == pytest.approx(np.exp(np.delete(loss, [2, 3, 4]).mean()), rel=1e-4)
    assert plain.perplexity_base == pytest.approx(np.exp(loss.mean()), rel=1e-4)
    assert row.tokens == plain.tokens == len(sample.ids)


def test_logits_that_are_no_row_for_each_token_are_refused() -> None:
    """Models that denoise a block of text give one for each place of the block."""
    with pytest.raises(MeasurementError, match="5 rows for 3 tokens: it predicts no next token"):
        logits.clean_of(sample([1, 2, 3]), torch.zeros(5, 7), {}, Scratch())
