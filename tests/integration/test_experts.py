"""Experts over all tokens, held against plain PyTorch, and what a card says of every one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from quantaudit.card.build import build_card
from quantaudit.card.charts import peaks_by_expert
from quantaudit.card.charts.draw import specification, specifications
from quantaudit.card.schema import Card
from quantaudit.card.views.card_view import CardView
from quantaudit.common.choices import Experts
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.errors import FormatError
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.measure.shard import Shard
from quantaudit.model.experts import calibrate_all_experts, extra_work, linearize
from quantaudit.model.forward.batches import BatchLimit
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import discover
from quantaudit.pipeline.prepare import AuditInputs, check_profile
from quantaudit.pipeline.settings_of_profile import settings_of_profile
from quantaudit.policy import load_policy
from quantaudit.quant.standard import choose_schemes
from quantaudit.settings import Settings
from quantaudit.simulate.granularity import watch_inputs
from tests.builders import differences, loaded_from, random_corpus
from tests.families import family_model

LAYER = "model.layers.1.mlp"


@pytest.fixture(scope="module")
def corpus() -> TokenizedCorpus:
    return random_corpus([40, 33, 33, 29, 24, 20, 11, 3])


def mixture(base: LoadedModel, name: str, *, dead: int | None = None) -> LoadedModel:
    """A float32 model of two layers and four experts, two of them for each token; one may be chosen by none."""
    model = family_model(name).float()
    linearize(model)
    if dead is not None:
        model.get_submodule(f"{LAYER}.router").bias.data[dead] = -1e4
    return loaded_from(model, base)


@pytest.fixture(scope="module")
def loaded(tiny_loaded: LoadedModel) -> LoadedModel:
    return mixture(tiny_loaded, "qwen3-moe")


@pytest.fixture(scope="module")
def profiles(loaded: LoadedModel, corpus: TokenizedCorpus) -> dict[Experts, Profile]:
    return {
        "routed": measure(loaded, corpus, batch=BatchLimit(3), experts="routed"),
        "all": measure(loaded, corpus, batch=BatchLimit(3), experts="all"),
    }


@pytest.fixture(scope="module")
def plain(loaded: LoadedModel, corpus: TokenizedCorpus) -> dict[int, dict[str, Tensor]]:
    """Sample → the layer's input [tokens, hidden] and its router's logits [tokens, experts], sample by sample."""
    model: Any = loaded.model
    seen: dict[int, dict[str, Tensor]] = {}
    mlp = model.get_submodule(LAYER)
    for sample in corpus.samples:
        here = seen.setdefault(sample.index, {})
        hook = mlp.register_forward_pre_hook(lambda _m, args, here=here: here.update(x=args[0][0].clone()))
        with torch.no_grad():
            model(input_ids=torch.from_numpy(sample.ids)[None])
        hook.remove()
        here["logits"] = functional.linear(here["x"], mlp.gate.weight)
    return seen


@torch.no_grad()
def built(model: Any, expert: int, x: Tensor) -> Tensor:
    """What an expert makes of tokens, before its down_proj."""
    mlp = model.get_submodule(f"{LAYER}.experts.{expert}")
    return functional.silu(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)


# Statistics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expert", range(4))
def test_inputs_over_all_tokens_are_those_of_a_plain_forward(
    loaded: LoadedModel, profiles: dict[Experts, Profile], plain: dict[int, dict[str, Tensor]], expert: int
) -> None:
    actual = profiles["all"].whole(f"layers.1.mlp.experts.{expert}.down_proj.input@all")
    assert actual is not None
    tensors = {index: built(loaded.model, expert, here["x"]) for index, here in plain.items()}
    for row, index in enumerate(actual.extremes.sample):
        x = tensors[int(index)]
        assert actual.extremes.tokens[row] == len(x)
        assert float(actual.extremes.min[row]) == pytest.approx(float(x.min()), rel=1e-4)
        assert float(actual.extremes.max[row]) == pytest.approx(float(x.max()), rel=1e-4)
    assert sorted(actual.extremes.sample) == sorted(tensors)
    highest = max(tensors, key=lambda index: float(tensors[index].abs().max()))
    position, channel = divmod(int(tensors[highest].abs().argmax()), tensors[highest].shape[1])
    peaks = actual.peaks
    assert (peaks.sample[0], peaks.position[0], peaks.channel[0]) == (highest, position, channel)
    every = torch.cat(list(tensors.values()))
    assert torch.allclose(torch.from_numpy(actual.channel_amax), every.abs().amax(0), rtol=1e-4)
    assert actual.distribution.counts.sum() == every.numel()


def test_running_on_all_tokens_changes_nothing_that_was_routed(profiles: dict[Experts, Profile]) -> None:
    routed, every = profiles["routed"], profiles["all"]
    assert {site.name for site in routed.sites} < {site.name for site in every.sites}
    for site in routed.sites:
        one, other = routed.whole(site.name), every.whole(site.name)
        assert one is not None
        assert other is not None
        assert one.extremes.sample.tolist() == other.extremes.sample.tolist()
        assert one.extremes.tokens.tolist() == other.extremes.tokens.tolist()
        assert one.channel_amax == pytest.approx(other.channel_amax, rel=1e-3, abs=1e-5)
        assert one.peaks.position[0] == other.peaks.position[0]


def test_the_merged_site_holds_every_token_as_often_as_it_is_routed(
    profiles: dict[Experts, Profile], plain: dict[int, dict[str, Tensor]]
) -> None:
    actual = profiles["routed"].whole("layers.1.mlp.experts.gate_up_proj.input")
    assert actual is not None
    every = torch.cat([here["x"] for here in plain.values()])
    assert actual.range == pytest.approx((float(every.min()), float(every.max())), rel=1e-5)
    assert actual.tokens == 2 * len(every)


def test_all_tokens_change_no_output(loaded: LoadedModel) -> None:
    model: Any = loaded.model
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with calibrate_all_experts():
            within = model(input_ids=ids).logits
    assert torch.allclose(before, within, rtol=1e-4, atol=1e-4)
    assert extra_work(model) == 2


# Undersampled experts -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short() -> TokenizedCorpus:
    """So few tokens that the experts of a layer are undersampled, although every one is reached."""
    return random_corpus([9, 8, 7], seed=3)


def undersampled(profile: Profile) -> set[str]:
    return {row.module for row in profile.provenance.unmeasured if row.reason.startswith("expert saw")}


@pytest.mark.parametrize("name", ["gpt-oss", "qwen3-moe"])
def test_undersampled_experts_are_run_on_all_tokens_and_the_others_are_not(
    tiny_loaded: LoadedModel, short: TokenizedCorpus, name: str
) -> None:
    loaded = mixture(tiny_loaded, name)
    routed, everywhere, auto = (
        measure(loaded, short, batch=BatchLimit(2), experts=e) for e in ("routed", "all", "auto")
    )
    assert undersampled(routed)
    assert not undersampled(auto)
    assert auto.experts == "routed"
    for key, value in routed.statistics.items():
        assert not differences(auto.statistics[key], value), key
    more = auto.statistics.keys() - routed.statistics.keys()
    assert {auto.by_name[site].members[0] for site in auto.by_name if f"{site}@all" in {name for name, _ in more}} == {
        module for module in undersampled(routed) if module.endswith("down_proj")
    }
    for key in more:  # not to the last bit: products of all rows at once round otherwise in the layers before
        one, other = auto.statistics[key], everywhere.statistics[key]
        assert (one.tokens, one.extremes.sample.tolist()) == (other.tokens, other.extremes.sample.tolist())
        np.testing.assert_allclose(one.channel_amax, other.channel_amax, rtol=1e-4)
        np.testing.assert_allclose(one.extremes.min, other.extremes.min, rtol=1e-4)


def test_an_expert_that_no_token_is_sent_to_stays_unmeasured(tiny_loaded: LoadedModel, short: TokenizedCorpus) -> None:
    profile = measure(mixture(tiny_loaded, "gpt-oss", dead=2), short, experts="auto")
    assert undersampled(profile) == {f"model.layers.1.mlp.experts.2.{p}_proj" for p in ("gate", "up", "down")}


def test_a_shard_cannot_know_which_experts_are_undersampled(tiny_loaded: LoadedModel, short: TokenizedCorpus) -> None:
    loaded = mixture(tiny_loaded, "gpt-oss")
    half = measure(loaded, short, experts="auto", shard=Shard(index=1, count=2))
    assert not [site for site in half.sites if site.name.endswith("@all")]


def card_of(loaded: LoadedModel, corpus: TokenizedCorpus, experts: Experts) -> Card:
    profile = measure(loaded, corpus, batch=BatchLimit(2), experts=experts)
    return build_card(profile, [], None, load_policy("default"), timings={})


def test_an_expert_that_one_split_does_not_reach_is_listed(tiny_loaded: LoadedModel, corpus: TokenizedCorpus) -> None:
    profile = measure(mixture(tiny_loaded, "gpt-oss"), corpus, batch=BatchLimit(2))
    missing = "layers.1.mlp.experts.2.down_proj.input"
    statistics = {key: value for key, value in profile.statistics.items() if key != (missing, "evaluation")}
    card = build_card(replace(profile, statistics=statistics), [], None, load_policy("default"), timings={})
    assert card.coverage.linears_measured == card.coverage.linears - 1
    (row,) = (row for row in card.coverage.unmeasured if row.weights)
    assert (row.module, row.reason) == (
        "model.layers.1.mlp.experts.2.down_proj",
        "saw no token of the evaluation split",
    )
    assert row.module in {finding.module for finding in card.findings if finding.code == "QA101"}


def test_a_dead_expert_has_a_range_over_all_tokens(tiny_loaded: LoadedModel, corpus: TokenizedCorpus) -> None:
    loaded = mixture(tiny_loaded, "gpt-oss", dead=2)
    card = card_of(loaded, corpus, "all")
    assert card.coverage.linears_measured == card.coverage.linears
    assert not [row for row in card.coverage.unmeasured if row.weights]
    assert card.experts is not None
    layer = card.experts.layers[1]
    assert layer.tokens[2] == 0
    assert layer.amax["down_proj"][2] is None
    assert (layer.amax_all_tokens["down_proj"][2] or 0) > 0
    assert card.experts.reading.endswith("1 of them saw fewer than 16 routed tokens, but were run on all tokens.")
    assert "those over all tokens" in card.experts.calibration


def test_a_dead_expert_is_listed_where_only_routed_tokens_ran(
    tiny_loaded: LoadedModel, corpus: TokenizedCorpus
) -> None:
    loaded = mixture(tiny_loaded, "gpt-oss", dead=2)
    card = card_of(loaded, corpus, "routed")
    (finding,) = [row for row in card.findings if row.code == "QA101" and row.severity == "error"]
    assert finding.value == 3
    assert "expert saw 0 tokens, fewer than 16" in finding.message
    assert card.experts is not None
    assert card.experts.reading.endswith("1 of them saw fewer than 16 routed tokens and are not measured.")
    assert "--experts all" in card.experts.calibration
    assert CardView(card).experts[1].undersampled == 1


def test_experts_that_llm_compressor_does_not_split_see_routed_tokens_alone(
    tiny_loaded: LoadedModel, corpus: TokenizedCorpus
) -> None:
    loaded = loaded_from(family_model("ling"), tiny_loaded)
    profile = measure(loaded, corpus, experts="all")
    assert profile.experts == "routed"
    assert not [site for site in profile.sites if site.all_tokens]
    card = build_card(profile, [], None, load_policy("default"), timings={})
    assert card.experts is not None
    assert "no others in this layout" in card.experts.calibration
    assert extra_work(loaded.model) is None


# The card ------------------------------------------------------------------------------------------------------------


def test_the_card_counts_and_peaks_are_those_of_a_plain_forward(
    loaded: LoadedModel, profiles: dict[Experts, Profile], plain: dict[int, dict[str, Tensor]]
) -> None:
    card = build_card(profiles["routed"], [], None, load_policy("default"), timings={})
    x = torch.cat([here["x"] for here in plain.values()])
    chosen = torch.cat([here["logits"] for here in plain.values()]).topk(2).indices
    assert card.experts is not None
    layer = card.experts.layers[1]
    assert (layer.name, layer.layer) == ("layers.1.mlp.experts", 1)
    assert layer.tokens == chosen.flatten().bincount(minlength=4).tolist()
    for expert in range(4):
        mine = x[(chosen == expert).any(-1)]
        assert layer.amax["gate_up_proj"][expert] == pytest.approx(float(mine.abs().max()), rel=1e-4)
        behind = built(loaded.model, expert, mine)
        assert layer.amax["down_proj"][expert] == pytest.approx(float(behind.abs().max()), rel=1e-4)
    line = CardView(card).experts[1]
    assert (line.fewest, line.most, line.experts) == (min(layer.tokens), max(layer.tokens), 4)
    highest = [max(pair, key=lambda v: v or 0.0) or 0.0 for pair in zip(*layer.amax.values(), strict=True)]
    assert (line.amax, line.expert) == (max(highest), highest.index(max(highest)))


def test_a_card_holds_one_site_for_each_group_of_experts(profiles: dict[Experts, Profile]) -> None:
    for profile in profiles.values():
        card = build_card(profile, [], None, load_policy("default"), timings={})
        assert not [site for site in card.sites if site.kind.startswith("expert")]
        assert sum(".experts." in site.name for site in card.sites) == 2 * 3  # what they read, the gate, what they make
        assert {row.kind for row in card.places.kinds if row.kind.startswith("expert")} == set()


def test_every_expert_has_a_cell_and_undersampled_ones_no_colour(
    tiny_loaded: LoadedModel, corpus: TokenizedCorpus
) -> None:
    card = card_of(mixture(tiny_loaded, "gpt-oss", dead=2), corpus, "routed")
    cells = peaks_by_expert.data(card)
    assert [(cell["layer"], cell["expert"]) for cell in cells] == [(i, e) for i in range(2) for e in range(4)]
    assert [cell["expert"] for cell in cells if cell["undersampled"]] == [2]
    chart = peaks_by_expert.chart(CardView(card))
    assert chart is not None
    spec = specification(chart)
    coloured, grey = (spec["datasets"][layer["data"]["name"]] for layer in spec["layer"])
    assert (len(coloured), [(cell["layer"], cell["expert"]) for cell in grey]) == (7, [(1, 2)])
    assert spec["description"].endswith("Experts with too few tokens: 1.")
    assert "peaks_by_expert" in specifications(CardView(card))


def test_granularity_is_calibrated_on_the_same_tokens_as_scales(
    loaded: LoadedModel, profiles: dict[Experts, Profile]
) -> None:
    profile = profiles["all"]
    groups = [group for group in discover(loaded.model).groups if group.projection == "down_proj" and group.experts]
    assert groups
    for group in groups:
        watched = watch_inputs([group], profile)[group.name]
        everywhere = profile.split(f"{group.site}@all", "calibration")
        assert everywhere is not None
        assert float(watched.channel_amax.max()) == everywhere.channel_amax.max()
        assert watched.per_tensor_range.max == everywhere.range[1]


def subject_of(settings: Settings, loaded: LoadedModel, corpus: TokenizedCorpus) -> AuditInputs:
    chosen = choose_schemes("int8", (), {})
    return AuditInputs(settings=settings, loaded=loaded, corpus=corpus, chosen=chosen, recipes=(), arithmetic="native")


@pytest.mark.parametrize(("measured", "asked"), [("all", "routed"), ("routed", "all")])
def test_a_profile_of_other_experts_is_refused(
    loaded: LoadedModel, corpus: TokenizedCorpus, profiles: dict[Experts, Profile], measured: Experts, asked: Experts
) -> None:
    def subject(experts: Experts) -> AuditInputs:
        return subject_of(Settings.of(experts=experts), loaded, corpus)

    with pytest.raises(FormatError, match=f"with --experts {measured}") as error:
        check_profile(subject(asked), profiles[measured])
    assert f"add --experts {measured}" in str(error.value.hint)
    check_profile(subject(measured), profiles[measured])
    assert settings_of_profile(profiles[measured], "m").measure.experts == measured


def test_where_experts_cannot_run_on_all_tokens_asking_for_it_changes_nothing(
    tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus, tiny_profile: Profile
) -> None:
    assert tiny_profile.experts is None
    everywhere = measure(tiny_loaded, tiny_corpus, experts="all")
    assert everywhere.sites == tiny_profile.sites
    assert everywhere.statistics.keys() == tiny_profile.statistics.keys()
    for key, value in tiny_profile.statistics.items():
        assert not differences(everywhere.statistics[key], value), key
    # A profile that was measured either way is good for a run that asks for the other.
    for asked in ("all", "routed"):
        settings = Settings.of(experts=asked)
        check_profile(subject_of(settings, tiny_loaded, tiny_corpus), everywhere)
    assert settings_of_profile(everywhere, "m").measure.experts == "routed"


def test_a_profile_in_another_dtype_is_refused(
    loaded: LoadedModel, corpus: TokenizedCorpus, profiles: dict[Experts, Profile]
) -> None:
    half = loaded.info.model_copy(update={"dtype": "float16"})
    subject = subject_of(Settings(), replace(loaded, info=half), corpus)
    with pytest.raises(FormatError, match="measured in float32, and the model is loaded in float16") as error:
        check_profile(subject, profiles["routed"])
    assert "--dtype float32" in str(error.value.hint)
    assert settings_of_profile(profiles["routed"], "m").model.dtype == "float32"
