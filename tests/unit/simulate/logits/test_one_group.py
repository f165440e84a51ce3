"""Groups simulated alone: a fair choice of them, and the KL of a model in which that group is quantized for good."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from quantaudit.common.choices import find_single
from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.errors import UsageError
from quantaudit.measure.profile import Profile
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Architecture, Group
from quantaudit.quant.observers import QParams
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC
from quantaudit.simulate.evaluation import select
from quantaudit.simulate.experiment import GroupOptions
from quantaudit.simulate.group_effect import GroupEffect
from quantaudit.simulate.logits.one_group import even_ranks, sample_groups, simulate_alone
from quantaudit.simulate.records import Simulation
from quantaudit.simulate.run import simulate
from tests.unit.simulate.reference import by_scheme, experiment, quantized_copy, ranges, run

BUDGET = 96


def effect(name: str, damage: float | None, *, scheme: str = "s", layer: int | None = 0) -> GroupEffect:
    group = Group(name=name, projection="p", layer=layer, members=())
    return GroupEffect(group=group, scheme=replace(INT8_STATIC, name=scheme), damage=damage)


def brute_force(loaded: LoadedModel, changed: object, samples: list[TokenizedSample]) -> float:
    """Mean KL over all tokens, in float64, of a model against its quantized copy."""
    kls = []
    for sample in samples:
        p, q = (run(model, sample).double().softmax(-1).numpy() for model in (loaded.model, changed))  # type: ignore[arg-type]
        kls.append(scipy.special.rel_entr(p, q).sum(-1))
    return float(np.concatenate(kls).mean())


@pytest.fixture(scope="module")
def simulation(tiny_loaded: LoadedModel, tiny_profile: Profile, tiny_corpus: TokenizedCorpus) -> Simulation:
    return simulate(
        tiny_loaded,
        tiny_profile,
        tiny_corpus.samples,
        [INT8_STATIC, INT8_DYNAMIC],
        evaluation_tokens=BUDGET,
        groups=GroupOptions(single=3),
    )


def test_the_kl_is_that_of_a_copy_with_this_group_quantized(
    simulation: Simulation, tiny_loaded: LoadedModel, architecture: Architecture, tiny_corpus: TokenizedCorpus
) -> None:
    calibration = [sample for sample in tiny_corpus.samples if sample.split == "calibration"]
    watched = ranges(tiny_loaded.model, architecture.groups, calibration)
    chosen = select(tiny_corpus.samples, BUDGET)
    simulated = [row for row in simulation.groups if row.kl is not None]
    sampled = [row for row in simulated if row.sampled]
    assert len(sampled) == 3
    assert {row.scheme for row in sampled} == {INT8_STATIC.name}
    assert all(row.sampled or row.price_simulated for row in simulated)
    for row in simulated:
        scheme = INT8_STATIC if row.scheme == INT8_STATIC.name else INT8_DYNAMIC
        changed = quantized_copy(tiny_loaded.model, architecture.groups, {row.group: scheme}, watched)
        assert row.kl == pytest.approx(brute_force(tiny_loaded, changed, chosen), rel=1e-3)
        assert row.kl is not None
        assert row.kl_stderr is not None
        assert 0 < row.kl_stderr < row.kl
    assert not any(row.sampled for row in simulation.groups if row.kl is None)


def test_the_sample_holds_the_worst_and_the_least_damaged_group(simulation: Simulation) -> None:
    static = [r for r in simulation.groups if r.scheme == INT8_STATIC.name and r.damage is not None]
    worst, least = (f(static, key=lambda r: r.damage or 0.0).group for f in (max, min))
    assert {worst, least} <= {r.group for r in simulation.groups if r.sampled}


def test_what_prices_need_is_kept_and_no_fair_sample(
    tiny_loaded: LoadedModel, tiny_profile: Profile, tiny_corpus: TokenizedCorpus
) -> None:
    """Anchors of prices from damage keep their KL; a sample that is asked for joins them, and nothing runs twice."""
    stages: list[tuple[str, int]] = []

    def simulated(single: int | None) -> Simulation:
        stages.clear()

        def opened(title: str, total: int, unit: str = "steps"):  # type: ignore[no-untyped-def]
            stages.append((title, total))
            return lambda amount=1: None

        return simulate(
            tiny_loaded,
            tiny_profile,
            tiny_corpus.samples,
            [INT8_STATIC],
            evaluation_tokens=BUDGET,
            groups=GroupOptions(score="damage", single=single),
            stages=opened,
        )

    alone = simulated(0)
    anchors = {r.group for r in alone.groups if r.kl is not None}
    assert len(anchors) >= 4
    assert not any(r.sampled for r in alone.groups)
    joined = simulated(None)
    inside = [r for r in joined.groups if r.layer is not None]
    assert all(r.sampled and r.kl is not None for r in inside)
    count = len(joined.evaluation.samples)
    assert [total for title, total in stages if title == "simulating single groups"] == [len(inside) * count]
    kl = {r.group: r.kl for r in joined.groups}
    assert {r.group: r.kl for r in alone.groups if r.group in anchors} == {name: kl[name] for name in anchors}


def test_a_group_without_a_range_keeps_a_null(
    tiny_loaded: LoadedModel,
    architecture: Architecture,
    samples: list[TokenizedSample],
    qparams: dict[str, QParams | None],
) -> None:
    inside = [group for group in architecture.groups if group.layer is not None][:2]
    effects = [GroupEffect(group=group, scheme=INT8_STATIC, damage=0.1) for group in inside]
    partial = {**qparams, inside[0].name: None}
    what = experiment(tiny_loaded.model, architecture, samples[:2], [INT8_STATIC], by_scheme(partial, [INT8_STATIC]))
    simulate_alone(what, effects)
    assert (effects[0].kl, effects[0].kl_stderr) == (None, None)
    assert effects[1].kl is not None


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=40), st.integers(0, 50))
def test_the_spread_has_distinct_rows_at_even_ranks(damages: list[float | None], count: int) -> None:
    effects = [effect(f"g{i}", damage) for i, damage in enumerate(damages)]
    others = [effect("other", 2.0, scheme="t"), effect("lm_head", 3.0, layer=None)]
    ranked = even_ranks([*others, *effects], "s", None)
    assert [e.damage for e in ranked] == sorted((d for d in damages if d is not None), reverse=True)
    chosen = even_ranks([*others, *effects], "s", count)
    assert len({e.group.name for e in chosen}) == len(chosen) == min(count, len(ranked))
    places = [ranked.index(e) for e in chosen]
    if len(places) > 1:
        assert (places[0], places[-1]) == (0, len(ranked) - 1)
        gaps = np.diff(places)
        assert gaps.max() - gaps.min() <= 1
    before = [replace(e) for e in [*others, *effects]]
    assert sample_groups([*others, *effects], "s", count) == chosen
    assert [e for e in [*others, *effects] if e.sampled] == [e for e in effects if e in chosen]
    assert [replace(e, sampled=False) for e in [*others, *effects]] == before


def test_even_ranks_keep_a_correlation_where_the_worst_half_would_not() -> None:
    """A predictor that only separates the worst few groups, as peaks do."""
    generator = np.random.default_rng(0)
    damage = np.exp(generator.normal(-8, 1, 120))
    damage[:12] *= 1000
    peak = np.where(damage > 1e-2, 1000 * damage, generator.uniform(1, 10, 120))
    effects = [effect(f"g{i}", float(d)) for i, d in enumerate(damage)]

    def rho(chosen: list[GroupEffect]) -> float:
        places = [int(e.group.name[1:]) for e in chosen]
        return float(spearmanr(peak[places], damage[places]).statistic)

    ranked = even_ranks(effects, "s", None)
    whole, even = rho(ranked), rho(even_ranks(effects, "s", 24))
    half_worst = rho(ranked[:12] + even_ranks(ranked[12:], "s", 12))
    assert abs(even - whole) < 0.2
    assert half_worst > whole + 0.3


@pytest.mark.parametrize("text", ["-1", "1.5", "most", "", "²", "9" * 5000])
def test_anything_but_a_count_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="number of fused groups"):
        find_single(text)


def test_counts_are_read() -> None:
    assert (find_single("0"), find_single("16"), find_single("all")) == (0, 16, None)
