"""Recipes become plans, module by module; what cannot be simulated is named and left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, preset_name_to_scheme

from quantaudit.common.resources import resource_dir
from quantaudit.corpus.tokens import TokenizedCorpus, TokenizedSample
from quantaudit.errors import UsageError
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.experts import linearize
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Architecture, discover
from quantaudit.quant.ranges import site_qparams
from quantaudit.quant.schemes import INT8, INT8_STATIC, find_scheme
from quantaudit.recipe.parse import read_recipe
from quantaudit.recipe.resolve import resolve
from quantaudit.recipe.resolved import ResolvedRecipe
from quantaudit.simulate.experiment import GroupOptions
from quantaudit.simulate.logits.score_plans import score_plans
from quantaudit.simulate.quantized.recipe_plan import check_names, recipe_plan
from quantaudit.simulate.records import RecipeRow
from quantaudit.simulate.run import simulate
from tests.builders import loaded_from, random_corpus
from tests.families import family_model


def resolved(path: Path, loaded: LoadedModel) -> ResolvedRecipe:
    resolution = resolve(read_recipe(path), loaded.model)
    reasons = tuple(change.reason for change in resolution.unsimulated)
    return ResolvedRecipe(name=path.stem, schemes=resolution.schemes, digest=resolution.digest, unsimulated=reasons)


def shipped(name: str) -> Path:
    return resource_dir("recipes") / f"{name}.yaml"


def of(schemes: dict[str, QuantizationScheme], **changes: object) -> ResolvedRecipe:
    return ResolvedRecipe(**{"name": "r", "schemes": schemes, "digest": "d", **changes})


def linears(scheme: str) -> QuantizationScheme:
    return preset_name_to_scheme(scheme, ["Linear"])


def rows_by_name(rows: list[RecipeRow]) -> dict[str, RecipeRow]:
    return {row.name: row for row in rows}


def test_shipped_recipes_score_as_the_schemes_they_spell_out(
    tiny_loaded: LoadedModel, tiny_profile: Profile, tiny_corpus: TokenizedCorpus
) -> None:
    """Static and dynamic INT8 by recipe are static and dynamic INT8 by name, to the last bit."""
    pairs = {"w8a8_static": "int8_static_per_tensor", "w8a8_dynamic": "int8_dynamic_per_token",
             "w8a8_static_moving_average": "int8_static_per_tensor:minmax", "fp8_static": "fp8_e4m3_static_per_tensor",
             "fp8_dynamic": "fp8_e4m3_dynamic_per_token"}  # fmt: skip
    simulation = simulate(
        tiny_loaded, tiny_profile, tiny_corpus.samples, [find_scheme(name) for name in pairs.values()],
        evaluation_tokens=60, groups=GroupOptions(score="damage"),
        recipes=[resolved(shipped(name), tiny_loaded) for name in pairs],
    )  # fmt: skip
    rows = rows_by_name(simulation.recipes)
    for recipe, scheme in pairs.items():
        assert (rows[recipe].kl, rows[recipe].perplexity) == (rows[scheme].kl, rows[scheme].perplexity)
        assert rows[recipe].groups == rows[scheme].groups
        assert rows[recipe].propagation == rows[scheme].propagation
        assert len(rows[recipe].digest or "") == 64
        assert (rows[recipe].approximate, rows[recipe].unsimulated) == ([], [])
    assert rows["w8a8_static"].kl != rows["w8a8_static_moving_average"].kl


def test_a_recipe_may_quantize_part_of_a_fused_group(
    tiny_loaded: LoadedModel,
    architecture: Architecture,
    tiny_profile: Profile,
    samples: list[TokenizedSample],
) -> None:
    model = tiny_loaded.model
    q, v = (f"model.layers.1.self_attn.{name}" for name in ("q_proj", "v_proj"))
    plans = [
        recipe_plan(of({path: linears("FP8") for path in paths}), model, architecture.groups, tiny_profile)
        for paths in ([q], [v], [q, v], [])
    ]
    assert [(len(plan.schemes), plan.groups) for plan in plans] == [(1, 1), (1, 1), (2, 1), (0, 0)]
    kls = [row.kl or 0.0 for row in score_plans(model, samples[:3], plans)]
    assert kls[3] == 0
    assert len(set(kls)) == 4
    assert min(kls[:3]) > 0


def test_modules_of_one_tensor_share_its_quantizer(
    tiny_loaded: LoadedModel, architecture: Architecture, tiny_profile: Profile
) -> None:
    scheme, other = linears("FP8"), linears("FP8")
    paths = [f"model.layers.0.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj")]
    plan = recipe_plan(
        of({paths[0]: scheme, paths[1]: scheme, paths[2]: other}), tiny_loaded.model, architecture.groups, tiny_profile
    )
    inputs = plan.inputs(torch.device("cpu"))
    assert inputs[paths[0]] is inputs[paths[1]] is not None
    assert inputs[paths[2]] is not inputs[paths[0]]


def test_the_observer_that_the_recipe_names_sets_the_range(
    tiny_loaded: LoadedModel, architecture: Architecture, tiny_profile: Profile
) -> None:
    path, site = "model.layers.2.mlp.down_proj", "layers.2.mlp.down_proj.input"
    ours = {"static_minmax": "absolute_maximum", "minmax": "minmax", "mse": "mse", None: "minmax"}
    for theirs, observer in ours.items():
        args = INT8.model_copy(update={"observer": theirs})
        scheme = QuantizationScheme(targets=["Linear"], input_activations=args)
        plan = recipe_plan(of({path: scheme}), tiny_loaded.model, architecture.groups, tiny_profile)
        expected = site_qparams(tiny_profile, site, INT8, observer)
        qparams = plan.qparams[path]
        assert qparams is not None
        assert expected is not None
        assert torch.equal(qparams.scale, expected.scale)
        assert bool(plan.approximate) == (theirs == "mse")


def test_what_cannot_be_simulated_is_named_and_left_alone(
    tiny_loaded: LoadedModel, architecture: Architecture, tiny_profile: Profile
) -> None:
    output = QuantizationScheme(targets=["Linear"], output_activations=QuantizationArgs(num_bits=8))
    schemes = {
        "model.embed_tokens": linears("W8A16"),
        "model.layers.0.mlp.down_proj": linears("W8A8"),
        "model.layers.0.self_attn.o_proj": linears("W4A16"),
        "model.layers.1.self_attn.o_proj": linears("W4A16"),
        "model.layers.2.self_attn.o_proj": output,
    }
    recipe = of(schemes, unsimulated=("rotated",))
    plan = recipe_plan(recipe, tiny_loaded.model, architecture.groups, tiny_profile)
    assert list(plan.schemes) == ["model.layers.0.mlp.down_proj"]
    assert plan.unsimulated[0] == "rotated"
    assert plan.title == "recipe r, simulated in part"
    text = "\n".join(plan.unsimulated)
    assert "embedding" in text
    assert "2 modules such as model.layers.0.self_attn.o_proj: 64 columns do not divide into groups of 128" in text
    assert "model.layers.2.self_attn.o_proj: output activations" in text


def test_a_module_without_a_finite_range_makes_the_row_nonfinite(
    tiny_loaded: LoadedModel, architecture: Architecture, tiny_profile: Profile, samples: list[TokenizedSample]
) -> None:
    gone = "layers.1.mlp.down_proj.input"
    kept = {key: value for key, value in tiny_profile.statistics.items() if key[0] != gone}
    profile = Profile(provenance=tiny_profile.provenance, statistics=kept)
    path = "model.layers.1.mlp.down_proj"
    plan = recipe_plan(of({path: linears("FP8")}), tiny_loaded.model, architecture.groups, profile)
    assert plan.unscaled == [path]
    (row,) = score_plans(tiny_loaded.model, samples[:2], [plan])
    assert row.nonfinite


def test_experts_have_ranges_of_their_own_and_are_marked(tiny_loaded: LoadedModel) -> None:
    model = family_model("qwen3-moe")
    linearize(model)
    loaded = loaded_from(model, tiny_loaded)
    corpus = random_corpus([60, 50, 40, 40, 30, 30])
    profile = measure(loaded, corpus)
    members = [m for site in profile.sites if site.kind == "expert_input" for m in site.members]
    groups = discover(model).groups
    plan = recipe_plan(of({m: linears("FP8") for m in members}), model, groups, profile)
    assert set(plan.schemes) == set(members)
    assert len(plan.approximate) == 1
    assert "routed tokens" in plan.approximate[0]
    scales = {float(qparams.scale) for qparams in plan.qparams.values() if qparams is not None}
    assert len(scales) > len(discover(model).blocks) * 2
    dynamic = recipe_plan(of({m: linears("FP8_DYNAMIC") for m in members}), model, groups, profile)
    assert dynamic.approximate == ()


def test_a_scheme_that_does_not_fit_is_refused(
    tiny_loaded: LoadedModel, tiny_profile: Profile, tiny_corpus: TokenizedCorpus
) -> None:
    with pytest.raises(UsageError, match="64 columns do not divide"):
        simulate(
            tiny_loaded, tiny_profile, tiny_corpus.samples, [find_scheme("int4_weights_group_128")],
            evaluation_tokens=60,
        )  # fmt: skip


def test_names_are_used_once() -> None:
    assert check_names(["a", "b"], ["c"]) is None
    assert check_names(["a", "b", "a"], []) == "a"
    assert check_names(["a", INT8_STATIC.name], [INT8_STATIC.name]) == INT8_STATIC.name


def test_every_named_scheme_that_fits_is_simulated_on_groups_and_the_whole_model(
    tiny_loaded: LoadedModel, tiny_profile: Profile, tiny_corpus: TokenizedCorpus
) -> None:
    """Four bits cost more than eight, blocks of scales less than one scale."""
    names = ["int8_weights", "fp8_e4m3_static_per_tensor", "nvfp4", "mxfp4", "int8_asymmetric_dynamic_per_token"]
    schemes = [find_scheme(name) for name in names]
    simulation = simulate(
        tiny_loaded,
        tiny_profile,
        tiny_corpus.samples,
        schemes,
        evaluation_tokens=60,
        groups=GroupOptions(score="gradient"),
    )
    rows = rows_by_name(simulation.recipes)
    kls = {name: row.kl for name, row in rows.items()}
    assert all(kl is not None and np.isfinite(kl) for kl in kls.values())
    assert kls["mxfp4"] > kls["nvfp4"] > kls["fp8_e4m3_static_per_tensor"] > kls["int8_weights"] > 0
    inside = [row for row in simulation.groups if row.layer is not None]
    assert all(row.damage is not None and row.price is not None for row in inside)
