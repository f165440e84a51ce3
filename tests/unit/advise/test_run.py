"""Advice on a small model with one planted outlier: what it changes, what it promises, and the file it writes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

from quantaudit.advise.candidates import find_candidates, multiplications, simulated_prices
from quantaudit.advise.goal import Goal, Offers
from quantaudit.advise.knapsack import least_lost
from quantaudit.advise.run import Advice, advise
from quantaudit.advise.written.amended_recipe import amended
from quantaudit.advise.written.edited_recipe import edited
from quantaudit.common.progress import Advance
from quantaudit.common.resources import resource_dir
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.errors import RecipeError, UsageError
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.experts import linearize
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import discover
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC
from quantaudit.recipe.parse import parse_recipe, read_recipe
from quantaudit.recipe.resolve import Resolution, resolve
from quantaudit.simulate import evaluation
from quantaudit.simulate.cost import SMOOTHING
from quantaudit.simulate.run import simulate
from tests.builders import load, loaded_from, opened_recipe, random_corpus, save_checkpoint, tiny_model
from tests.families import family_model

STATIC = resource_dir("recipes") / "w8a8_static.yaml"
CULPRIT = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """One channel of one down_proj's input is thousands of times its neighbours."""
    model = tiny_model("llama", num_hidden_layers=3)
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.up_proj").weight[5] *= 3000
        model.get_submodule(CULPRIT).weight[:, 5] /= 3000
    return load(save_checkpoint(tmp_path_factory.mktemp("advise") / "llama", model))


PLAIN = Offers(smoothing=False, moving_averages=True, unquantized=True)
QUANTIZED = replace(PLAIN, unquantized=False)


@pytest.fixture(scope="module")
def corpus() -> TokenizedCorpus:
    return random_corpus([40, 33, 29, 24, 20, 17, 13, 9])


@pytest.fixture(scope="module")
def profile(loaded: LoadedModel, corpus: TokenizedCorpus) -> Profile:
    return measure(loaded, corpus)


def without(profile: Profile, site: str) -> Profile:
    """The same, had nothing passed through a site."""
    kept = {key: value for key, value in profile.statistics.items() if key[0] != site}
    return replace(profile, statistics=kept)


@pytest.fixture(scope="module")
def resolution(loaded: LoadedModel) -> Resolution:
    return resolve(read_recipe(STATIC), loaded.model)


@pytest.fixture(scope="module")
def advice(loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, resolution: Resolution) -> Advice:
    samples = evaluation.select(corpus.samples, 512)
    return advise(opened_recipe(loaded, profile, corpus, resolution, samples), Goal(as_good_as="dynamic"), PLAIN)


def test_the_goal_is_met_in_simulation_and_better_than_as_written(advice: Advice) -> None:
    info = advice.info
    assert info.met
    assert info.advised.kl is not None
    assert info.budget is not None
    assert info.before.kl is not None
    assert info.advised.kl <= info.budget < info.before.kl


def test_most_of_the_model_keeps_its_format_and_the_culprit_does_not_stay_as_it_was(advice: Advice) -> None:
    assert advice.info.before.kept == pytest.approx(1.0)
    assert 0.5 < (advice.info.advised.kept or 0.0) < 1.0
    changed = {change.group: change for change in advice.info.changes}
    assert "layers.1.mlp.down_proj" in changed
    assert advice.info.changes[0].group == "layers.1.mlp.down_proj"
    assert not changed["layers.1.mlp.down_proj"].keeps


WITH_PATTERNS = """\
# Ours, for the release.
quant_stage:
  quant_modifiers:
    QuantizationModifier:
      ignore: [lm_head]  # as every recipe does
      config_groups:
        attention:  # the calm part
          targets: ['re:.*self_attn.*']
          weights: &weights {num_bits: 8, strategy: channel}
          input_activations: &inputs {num_bits: 8, strategy: tensor, observer: static_minmax}
        # Where peaks are.
        mlp:
          targets: ['re:.*mlp.*']
          weights: *weights
          input_activations: *inputs
"""
PRESET = """\
# Ours, for the release.
quant_stage: {quant_modifiers: {QuantizationModifier: {scheme: W8A8, targets: [Linear], ignore: [lm_head]}}}
"""


@pytest.mark.parametrize("original", [STATIC.read_text(encoding="utf-8"), WITH_PATTERNS], ids=["class", "patterns"])
@pytest.mark.parametrize("unquantized", [True, False])
def test_a_recipe_keeps_what_its_author_wrote(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, original: str, unquantized: bool
) -> None:
    samples = evaluation.select(corpus.samples, 512)
    written = resolve(parse_recipe(original, "mine.yaml"), loaded.model)
    subject = opened_recipe(loaded, profile, corpus, written, samples)
    result = advise(subject, Goal(as_good_as="dynamic"), PLAIN if unquantized else QUANTIZED)
    assert result.info.changes
    text = amended(result, loaded.info, loaded.model, original)
    resolved = resolve(parse_recipe(text, "advised.yaml"), loaded.model)
    assert resolved.digest == result.row.digest
    assert not resolved.overlaps
    assert [row.text for row in resolved.unmatched] == [row.text for row in written.unmatched]
    body = text[text.index(original.splitlines()[0]) :].splitlines()
    lost = [line for line in original.splitlines() if line not in body]
    left_out = unquantized and any(change.option == "unquantized" for change in result.info.changes)
    assert all("targets:" in line or (left_out and "ignore:" in line) for line in lost), lost
    kept = [line for line in body if line in set(original.splitlines())]
    assert kept == [line for line in original.splitlines() if line not in lost]
    assert "# the calm part" in text or original != WITH_PATTERNS


def test_a_preset_is_written_out_under_its_authors_comment(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus
) -> None:
    original = PRESET.replace("scheme: W8A8", "scheme: FP8")
    written = resolve(parse_recipe(original, "mine.yaml"), loaded.model)
    subject = opened_recipe(loaded, profile, corpus, written, evaluation.select(corpus.samples, 512))
    result = advise(subject, Goal(as_good_as="dynamic"), PLAIN)
    text = amended(result, loaded.info, loaded.model, original)
    assert resolve(parse_recipe(text, "advised.yaml"), loaded.model).digest == result.row.digest
    assert "# Ours, for the release." in text.splitlines()


def test_what_cannot_be_edited_is_written_anew() -> None:
    """A recipe that is read as other YAML, or whose modifier stands elsewhere there, has no text to keep."""
    parsed = parse_recipe(WITH_PATTERNS, "mine.yaml")
    for original in ("a: [", "quant_stage: {}", PRESET):
        assert edited(original, parsed, header=[], changed=[], kept={}, left=[]) is None
    assert edited(WITH_PATTERNS, parsed, header=["x"], changed=[], kept={}, left=[]) == f"# x\n#\n{WITH_PATTERNS}"


def test_a_price_is_the_cards_where_that_simulated_the_group_on_the_same_samples(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, resolution: Resolution
) -> None:
    simulation = simulate(loaded, profile, corpus.samples, [INT8_STATIC, INT8_DYNAMIC], evaluation_tokens=512)
    rows = {(row.group, row.scheme): row for row in simulation.groups}
    assert any(row.price_simulated for row in rows.values())

    samples = evaluation.select(corpus.samples, 512)
    known = simulated_prices(simulation, samples)
    names = {"as written": INT8_STATIC.name, "dynamic": INT8_DYNAMIC.name}
    subject = opened_recipe(loaded, profile, corpus, resolution, samples)
    prices = {
        (candidate.group.name, names[option.name]): price
        for candidate in find_candidates(subject, PLAIN, simulated=known)
        for option, price in zip(candidate.options, candidate.prices, strict=True)
        if option.name in names
    }
    assert prices == {key: rows[key].price for key in prices}
    assert any(rows[key].price_simulated for key in prices)
    assert simulated_prices(simulation, evaluation.select(corpus.samples, 20)) == {}
    assert simulated_prices(None, samples) == {}


def test_the_curve_falls_as_less_is_kept(advice: Advice) -> None:
    estimates = [point.estimated_kl for point in advice.info.curve]
    assert len(estimates) >= 4
    assert estimates == sorted(estimates, reverse=True)  # type: ignore[type-var]


def test_the_file_resolves_to_what_was_simulated_and_says_why(loaded: LoadedModel, advice: Advice) -> None:
    text = amended(advice, loaded.info, loaded.model)
    resolved = resolve(parse_recipe(text, "advised.yaml"), loaded.model)
    assert set(resolved.schemes) == set(advice.schemes)
    assert not resolved.unmatched
    assert not resolved.overlaps
    assert "lm_head" not in resolved.schemes
    assert f"KL {advice.info.advised.kl:.4f}" in text
    line = next(line for line in text.splitlines() if CULPRIT in line)
    assert "estimated KL" in line
    assert yaml.safe_load(text)["quant_stage"]["quant_modifiers"]["QuantizationModifier"]["config_groups"]


def is_named(module: str, comment: str) -> bool:
    """Whether a line of a recipe's comment names a module, or a pattern that matches it."""
    target = comment.removeprefix("#").split()[0].removesuffix(":")
    return target == module or (target.startswith("re:") and re.match(target[3:], module) is not None)


def test_groups_that_are_treated_alike_are_one_target(loaded: LoadedModel, advice: Advice) -> None:
    text = amended(advice, loaded.info, loaded.model)
    groups = yaml.safe_load(text)["quant_stage"]["quant_modifiers"]["QuantizationModifier"]["config_groups"]
    titles = {change.group: change.title for change in advice.info.changes}
    ways = {(str(scheme), titles.get(name)) for name, (_, scheme) in advice.groups.items() if scheme is not None}
    targets = [target for group in groups.values() for target in group["targets"]]
    projections = {group.projection for group, _ in advice.groups.values()}
    assert len(targets) <= len(ways) * len(projections)
    assert len(targets) < len(advice.schemes) / 2


def test_unquantized_groups_are_named_in_a_comment_only(loaded: LoadedModel, advice: Advice) -> None:
    left = [change.group for change in advice.info.changes if change.option == "unquantized"]
    members = {g.name: g.members for g in discover(loaded.model).groups}
    text = amended(advice, loaded.info, loaded.model)
    named = "\n".join(line for line in text.splitlines() if line.startswith("#   "))
    for group in left:
        assert all(any(is_named(member, line) for line in named.splitlines()) for member in members[group])
        assert not set(members[group]) & set(advice.schemes)


def test_where_nothing_may_stay_unquantized_the_best_is_given_and_a_missed_goal_told(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, resolution: Resolution
) -> None:
    samples = evaluation.select(corpus.samples, 128)
    subject = opened_recipe(loaded, profile, corpus, resolution, samples)
    reached = advise(subject, Goal(as_good_as="dynamic"), QUANTIZED)
    missed = advise(subject, Goal(max_kl=1e-9), QUANTIZED)
    assert (reached.info.met, missed.info.met) == (True, False)
    for row in (reached, missed):
        assert set(row.schemes) == set(resolution.schemes)
        points = [row.info.before, *row.info.curve, *row.info.references, row.info.advised]
        assert not any("unquantized" in point.options for point in points)
    # Nothing that was simulated is better than what is advised, the recipe as it is written included.
    others = [missed.info.before, *missed.info.curve, *missed.info.references]
    assert missed.info.advised.kl == min(point.kl for point in [*others, missed.info.advised] if point.kl is not None)
    assert "The goal was NOT met: the budget was a KL of 1e-09." in amended(missed, loaded.info, loaded.model)


def test_a_missed_goal_leaves_the_recipe_as_it_was_where_nothing_is_better(
    loaded: LoadedModel,
    profile: Profile,
    corpus: TokenizedCorpus,
    resolution: Resolution,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prices that are wrong altogether: the cheapest choice is the worst one."""

    def worst(*args: Any, **options: Any) -> Any:
        return [
            replace(result, prices=tuple(1e-6 if option.name == "minmax" else 1.0 for option in result.options))
            for result in find_candidates(*args, **options)
        ]

    monkeypatch.setattr("quantaudit.advise.run.find_candidates", worst)
    samples = evaluation.select(corpus.samples, 128)
    result = advise(opened_recipe(loaded, profile, corpus, resolution, samples), Goal(max_kl=1e-9), QUANTIZED)
    points = [result.info.before, *result.info.curve, *result.info.references]
    assert not result.info.met
    assert result.info.advised.kl == min(point.kl for point in points if point.kl is not None)


def test_a_group_whose_columns_do_not_divide_is_offered_what_fits(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus
) -> None:
    """Groups of 128 on 64 columns: such a Linear can only be left alone."""
    samples = evaluation.select(corpus.samples, 64)
    written = resolve(read_recipe(resource_dir("recipes") / "w4a16.yaml"), loaded.model)
    subject = opened_recipe(loaded, profile, corpus, written, samples)
    by_name = {c.group.name: [option.name for option in c.options] for c in find_candidates(subject, PLAIN)}
    assert by_name["layers.0.self_attn.qkv_proj"] == ["unquantized"]
    assert by_name["layers.0.mlp.down_proj"][0] == "as_written"
    with pytest.raises(RecipeError, match="cannot be quantized as written"):
        find_candidates(subject, QUANTIZED)


def test_what_cannot_be_quantized_as_written_and_must_be_is_refused(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, resolution: Resolution
) -> None:
    site = ("layers.1.mlp.down_proj.input", "calibration")
    undersampled = replace(profile, statistics={key: value for key, value in profile.statistics.items() if key != site})
    samples = evaluation.select(corpus.samples, 64)
    subject = opened_recipe(loaded, undersampled, corpus, resolution, samples)
    assert find_candidates(subject, PLAIN)
    with pytest.raises(RecipeError, match=r"`layers.1.mlp.down_proj` cannot be quantized as written"):
        find_candidates(subject, QUANTIZED)


def test_a_budget_that_everything_meets_changes_nothing_of_the_format(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, resolution: Resolution
) -> None:
    samples = evaluation.select(corpus.samples, 128)
    result = advise(opened_recipe(loaded, profile, corpus, resolution, samples), Goal(max_kl=50.0), PLAIN)
    assert result.info.met
    assert result.info.advised.kept == pytest.approx(1.0)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_multiplications_are_those_of_the_tokens_that_reached_a_group(
    family: str, loaded: LoadedModel, corpus: TokenizedCorpus
) -> None:
    """Against a count by forward hooks."""
    model = tiny_model("llama") if family == "llama" else family_model(family)
    linearize(model)
    counted: dict[str, int] = {}
    handles = [
        module.register_forward_hook(
            lambda m, a, _o, name=name: counted.__setitem__(
                name, counted.get(name, 0) + a[0].numel() // a[0].shape[-1] * m.weight.numel()
            )
        )
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with torch.no_grad():
        for sample in corpus.samples:
            model(input_ids=torch.from_numpy(sample.ids)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    other = loaded_from(model, loaded)
    profile = measure(other, corpus)
    for group in discover(model).groups:
        if group.layer is not None:
            expected = sum(counted.get(member, 0) for member in group.members)
            assert multiplications(other, profile, group) == pytest.approx(expected), group.name


def test_a_group_of_which_a_recipe_quantizes_a_part_is_taken_whole(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus
) -> None:
    text = STATIC.read_text().replace("ignore: [lm_head]", 'ignore: [lm_head, "re:.*q_proj$"]')
    partial = resolve(parse_recipe(text, "partial.yaml"), loaded.model)
    subject = opened_recipe(loaded, profile, corpus, partial, evaluation.select(corpus.samples, 64))
    candidates = find_candidates(subject, PLAIN)
    assert len(candidates) == len([g for g in discover(loaded.model).groups if g.layer is not None])
    assert sum(candidate.share for candidate in candidates) == pytest.approx(1.0)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_no_change_could_be_undone_within_the_budget_and_each_buys_its_share(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, resolution: Resolution, share: float
) -> None:
    """By undoing each change, and by undoing any two of them: what they keep out of other formats would be lost."""
    subject = opened_recipe(loaded, profile, corpus, resolution, evaluation.select(corpus.samples, 128))
    candidates = find_candidates(subject, PLAIN)
    written = sum(candidate.prices[0] for candidate in candidates)
    choice = least_lost([candidate.item_with_changes for candidate in candidates], share * written)
    changed = [place for place, option in enumerate(choice) if option]
    assert changed
    total = sum(candidate.prices[option] for candidate, option in zip(candidates, choice, strict=True))
    assert total <= share * written
    for undone in [{one, other} for one in changed for other in changed]:
        more = sum(candidates[place].prices[0] - candidates[place].prices[choice[place]] for place in undone)
        assert total + more > share * written


def test_a_goal_may_be_a_scheme_of_the_card_on_the_same_tokens(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, resolution: Resolution
) -> None:
    """As good as the scheme that was simulated in all groups: the budget is its KL, to the bit."""
    simulation = simulate(loaded, profile, corpus.samples, [INT8_STATIC, INT8_DYNAMIC], evaluation_tokens=512)
    (kl,) = (row.kl for row in simulation.recipes if row.name == INT8_DYNAMIC.name)
    subject = opened_recipe(loaded, profile, corpus, resolution, evaluation.select(corpus.samples, 512))
    result = advise(subject, Goal(as_good_as="W8A8"), PLAIN, simulation=simulation)
    assert (result.info.budget, result.info.goal, result.info.met) == (kl, "as good as W8A8 everywhere", True)
    other = opened_recipe(loaded, profile, corpus, resolution, evaluation.select(corpus.samples, 20))
    with pytest.raises(UsageError, match="on other evaluation tokens"):
        advise(other, Goal(as_good_as="W8A8"), PLAIN, simulation=simulation)
    with pytest.raises(UsageError, match="no KL of it"):
        advise(subject, Goal(as_good_as="NVFP4"), PLAIN, simulation=simulation)
    weights_only = resolve(read_recipe(resource_dir("recipes") / "w8a16.yaml"), loaded.model)
    opened = opened_recipe(loaded, profile, corpus, weights_only, evaluation.select(corpus.samples, 512))
    assert advise(opened, Goal(as_good_as="W8A8"), PLAIN, simulation=simulation).info.met


def test_advice_needs_one_goal() -> None:
    with pytest.raises(UsageError, match="one goal"):
        Goal()
    with pytest.raises(UsageError, match="one goal"):
        Goal(max_kl=0.1, as_good_as="dynamic")
    for budget in (-1.0, 0.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="above zero"):
            Goal(max_kl=budget)
    with pytest.raises(UsageError, match="unknown scheme"):
        Goal(as_good_as="gold")
    with pytest.raises(UsageError, match="no such alternative"):
        Goal(as_good_as="fp8").scheme_kl(None)


def test_a_recipe_without_the_alternative_is_refused_before_anything_is_priced(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantaudit.advise.run.find_candidates", lambda *_, **__: pytest.fail("was priced"))
    weights_only = resolve(read_recipe(resource_dir("recipes") / "w4a16.yaml"), loaded.model)
    with pytest.raises(UsageError, match="no alternative `dynamic`"):
        advise(opened_recipe(loaded, profile, corpus, weights_only, corpus.samples), Goal(as_good_as="dynamic"), PLAIN)


@pytest.mark.parametrize("recipe", ["w8a8_dynamic", "w8a8_mixed"])
def test_what_is_dynamic_already_is_its_own_reference(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, recipe: str
) -> None:
    samples = evaluation.select(corpus.samples, 64)
    written = resolve(read_recipe(resource_dir("recipes") / f"{recipe}.yaml"), loaded.model)
    result = advise(opened_recipe(loaded, profile, corpus, written, samples), Goal(as_good_as="dynamic"), PLAIN)
    (reference,) = result.info.references
    assert result.info.budget == reference.kl
    assert (reference.kl == result.info.before.kl) == (recipe == "w8a8_dynamic")
    assert result.info.met
    if recipe == "w8a8_dynamic":
        assert result.info.advised.kept == pytest.approx(1.0)
    amended(result, loaded.info, loaded.model)


def test_advice_on_experts_and_the_output_embedding_resolves_to_what_was_simulated(
    loaded: LoadedModel, corpus: TokenizedCorpus
) -> None:
    model = family_model("mixtral")
    linearize(model)
    other = loaded_from(model, loaded)
    text = STATIC.read_text().replace("ignore: [lm_head]", 'ignore: ["re:.*mlp.gate$"]')
    written = resolve(parse_recipe(text, "r.yaml"), model)
    assert "lm_head" in written.schemes
    measured = without(measure(other, corpus), "layers.0.self_attn.o_proj.input")
    samples = evaluation.select(corpus.samples, 64)
    result = advise(opened_recipe(other, measured, corpus, written, samples), Goal(max_kl=1e-3), PLAIN)
    assert "lm_head" in result.groups
    assert any(change.group.endswith("experts.down_proj") for change in result.info.changes)
    assert set(result.schemes) < set(written.schemes)
    advised = amended(result, other.info, model)
    assert r"layers\.1\.mlp\.experts\.[0-9]+\." in advised
    assert result.unmeasured == ("model.layers.0.self_attn.o_proj",)
    assert "#   model.layers.0.self_attn.o_proj: not measured\n" in advised


def test_a_recipe_that_cannot_be_simulated_is_refused(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus
) -> None:
    smooth = resolve(read_recipe(resource_dir("recipes") / "w8a8_smoothquant.yaml"), loaded.model)
    with pytest.raises(RecipeError, match="cannot be advised on"):
        advise(opened_recipe(loaded, profile, corpus, smooth, corpus.samples), Goal(max_kl=0.1), PLAIN)


def test_every_stage_ends_where_it_said_and_what_is_chosen_is_calibrated_once(
    loaded: LoadedModel, profile: Profile, corpus: TokenizedCorpus, resolution: Resolution
) -> None:
    opened: list[tuple[str, int]] = []
    passed: list[int] = []

    def stages(title: str, total: int, unit: str = "steps") -> Advance:
        opened.append((title, total))
        passed.append(0)
        place = len(passed) - 1

        def advance(amount: int = 1) -> None:
            passed[place] += amount

        return advance

    samples = evaluation.select(corpus.samples, 512)
    offers = Offers(smoothing=True, moving_averages=False, unquantized=False)
    case = opened_recipe(loaded, profile, corpus, resolution, samples)
    found = advise(case, Goal(max_kl=0.3), offers, stages=stages)
    assert passed == [total for _, total in opened]
    assert found.info.met
    assert found.smooth
    first, *others = [title for title, _ in opened if title.startswith("calibrating")]
    assert first == SMOOTHING
    assert len(others) == 1  # of what is chosen, which several rounds have led to
