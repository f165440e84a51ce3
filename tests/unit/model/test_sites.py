"""Sites and groups are found by structure, in every common decoder, whole or as a skeleton."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from quantaudit.errors import ModelError
from quantaudit.model.forward.capture import capture
from quantaudit.model.loading.checkpoint import locate
from quantaudit.model.loading.load import load_skeleton
from quantaudit.model.sites import Architecture, decoder_layers, discover
from tests.builders import CONFIGS, tiny_config, tiny_model

SEPARATE = sorted(set(CONFIGS) - {"phi3"})
"""Architectures whose q, k, v and gate, up are modules of their own."""


def skeleton(config: transformers.PretrainedConfig) -> nn.Module:
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    return tiny_model(request.param)


def linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def by_name(architecture: Architecture) -> dict[str, tuple[str, int | None, str, str]]:
    return {site.name: (site.kind, site.layer, site.module, site.tap) for site in architecture.sites}


def test_groups_hold_every_linear_exactly_once(model: nn.Module) -> None:
    members = Counter(member for group in discover(model).groups for member in group.members)
    assert members == Counter(linears(model))


def test_every_group_reads_the_site_of_its_name(model: nn.Module) -> None:
    architecture = discover(model)
    sites = {site.name: site for site in architecture.sites}
    for group in architecture.groups:
        site = sites[group.site]
        assert (site.kind, site.layer, site.tap) == ("linear_input", group.layer, "input")
        assert tuple(site.members) == group.members
        assert site.module == group.members[0]
    assert sum(site.kind == "linear_input" for site in architecture.sites) == len(architecture.groups)


def test_every_layer_has_the_four_fused_groups(model: nn.Module) -> None:
    groups = discover(model).groups
    for layer in range(3):
        assert {group.name for group in groups if group.layer == layer} == {
            f"layers.{layer}.self_attn.qkv_proj",
            f"layers.{layer}.self_attn.o_proj",
            f"layers.{layer}.mlp.gate_up_proj",
            f"layers.{layer}.mlp.down_proj",
        }
    assert [group.name for group in groups if group.layer is None] == ["lm_head"]
    assert all(group.name.endswith(group.projection) for group in groups)


@pytest.mark.parametrize("name", SEPARATE)
def test_separate_projections_are_fused_as_engines_fuse_them(name: str) -> None:
    groups = {group.name: group.members for group in discover(tiny_model(name)).groups}
    layer = "model.layers.1"
    assert groups["layers.1.self_attn.qkv_proj"] == tuple(f"{layer}.self_attn.{p}_proj" for p in "qkv")
    assert groups["layers.1.mlp.gate_up_proj"] == (f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj")
    assert groups["layers.1.mlp.down_proj"] == (f"{layer}.mlp.down_proj",)
    assert groups["lm_head"] == ("lm_head",)


def test_projections_that_are_fused_already_are_groups_of_one() -> None:
    groups = {group.name: group.members for group in discover(tiny_model("phi3")).groups}
    assert groups["layers.1.self_attn.qkv_proj"] == ("model.layers.1.self_attn.qkv_proj",)
    assert groups["layers.1.mlp.gate_up_proj"] == ("model.layers.1.mlp.gate_up_proj",)


def test_the_other_sites_are_where_their_kind_says(model: nn.Module) -> None:
    architecture = discover(model)
    sites = by_name(architecture)
    assert sites["embedding"] == ("embedding", None, "model.embed_tokens", "output")
    assert sites["final_norm"] == ("final_norm", None, "model.norm", "output")
    for i in range(3):
        block = f"model.layers.{i}"
        assert sites[f"layers.{i}.output"] == ("residual", i, block, "output")
        assert sites[f"layers.{i}.self_attn.output"] == ("attention_output", i, f"{block}.self_attn", "output")
        assert sites[f"layers.{i}.mlp.output"] == ("mlp_output", i, f"{block}.mlp", "output")
    assert architecture.blocks == tuple(f"model.layers.{i}" for i in range(3))
    assert architecture.unmeasured == ()


@pytest.mark.parametrize("name", SEPARATE)
def test_the_gate_is_what_gate_proj_puts_out(name: str) -> None:
    sites = by_name(discover(tiny_model(name)))
    assert sites["layers.2.mlp.gate"] == ("gate", 2, "model.layers.2.mlp.gate_proj", "output")


def test_site_names_are_unique(model: nn.Module) -> None:
    names = [site.name for site in discover(model).sites]
    assert len(set(names)) == len(names)


def test_sites_are_listed_in_the_order_of_the_forward_pass(model: nn.Module) -> None:
    architecture = discover(model)
    order: list[str] = []
    with capture(model, architecture.sites, lambda name, _: order.append(name)), torch.no_grad():
        model(input_ids=torch.arange(5)[None], use_cache=False)
    assert order == [site.name for site in architecture.sites]


def test_a_skeleton_gives_the_same_sites_as_the_model(model: nn.Module) -> None:
    assert discover(skeleton(model.config)) == discover(model)


def test_a_skeleton_of_70_billion_parameters_is_enough() -> None:
    config = transformers.LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    model = skeleton(config)
    assert sum(parameter.numel() for parameter in model.parameters()) > 70e9
    architecture = discover(model)
    assert len(architecture.groups) == 80 * 4 + 1
    assert {member for group in architecture.groups for member in group.members} == set(linears(model))
    assert Counter(site.kind for site in architecture.sites) == {
        "embedding": 1,
        "final_norm": 1,
        "linear_input": 321,
        "residual": 80,
        "attention_output": 80,
        "mlp_output": 80,
        "gate": 80,
    }


def test_a_tied_output_projection_is_a_group_like_any_other() -> None:
    assert discover(tiny_model("llama", tie_word_embeddings=True)).groups[-1].members == ("lm_head",)


def test_a_component_that_is_not_recognised_is_listed_as_unmeasured() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mixer = model.model.layers[1].self_attn
    del model.model.layers[1].self_attn
    architecture = discover(model)
    assert [row.module for row in architecture.unmeasured] == ["layers.1.self_attn.output"]
    assert "attention output" in architecture.unmeasured[0].reason
    names = {group.name for group in architecture.groups}
    assert "layers.1.mixer.qkv_proj" in names


def test_the_largest_list_of_layers_is_the_decoder() -> None:
    model = tiny_model("llama")
    model.side = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))
    path, layers = decoder_layers(model)
    assert path == "model.layers"
    assert layers is model.model.layers


def test_linears_outside_the_layers_are_groups_under_their_own_names() -> None:
    model = tiny_model("llama")
    model.side = nn.Linear(4, 4)
    groups = {group.name: group for group in discover(model).groups}
    assert groups["side"].members == ("side",)
    assert groups["side"].layer is None


def test_a_model_without_decoder_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="no decoder layers"):
        discover(nn.Sequential(nn.Linear(3, 3)))


def test_every_tiny_configuration_is_a_family_of_its_own() -> None:
    assert len({tiny_config(name).model_type for name in CONFIGS}) == len(CONFIGS)


def test_weights_outside_linears_are_listed_not_passed_by() -> None:
    config = transformers.Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    missing = {row.module for row in discover(model).unmeasured if row.weights}
    assert {f"model.layers.{i}.mlp.experts" for i in range(2)} <= missing


def test_a_mixture_of_128_experts_is_listed_whole_from_its_configuration(tmp_path: Path) -> None:
    """A folder with config.json alone: no weights, no tokenizer."""
    config = transformers.Qwen3MoeConfig(
        hidden_size=4096, num_hidden_layers=4, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=1536,
        num_attention_heads=64, num_key_value_heads=4, head_dim=128,
    )  # fmt: skip
    config.architectures = ["Qwen3MoeForCausalLM"]
    config.save_pretrained(tmp_path)
    model = load_skeleton(locate(str(tmp_path), weights=False))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    architecture = discover(model)
    assert not [row for row in architecture.unmeasured if row.weights]
    assert Counter(member for group in architecture.groups for member in group.members) == Counter(linears(model))
    kinds = Counter(site.kind for site in architecture.sites)
    assert (kinds["expert_input"], kinds["expert_input_all"], kinds["router_logits"]) == (4 * 128 * 2, 0, 4)
    everywhere = discover(model, all_tokens=True)
    assert everywhere.groups == architecture.groups
    over_all = [site for site in everywhere.sites if site.kind == "expert_input_all"]
    assert len(over_all) == 4 * (128 + 1)
    assert {site.name.partition("experts.")[2].lstrip("0123456789.") for site in over_all} == {"down_proj.input@all"}
    names = {site.name for site in everywhere.sites}
    assert len(names) == len(everywhere.sites)
    assert {site.all_tokens for site in everywhere.sites if site.kind == "expert_input"} <= names
    with pytest.raises(ModelError, match="no weights"):
        locate(str(tmp_path))


def test_a_dense_model_has_no_weights_outside_linears() -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(tiny_config("llama"))
    assert not [row for row in discover(model).unmeasured if row.weights]
