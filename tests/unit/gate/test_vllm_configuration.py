"""How the engine reads what llm-compressor saves: the saved configuration against compressed_tensors' own, its reading
against the rules of the engine written out once more, and the table against names of real configurations."""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from torch import nn

from quantaudit.gate.vllm_configuration import Unit, partings, saved_config, units
from quantaudit.model.engine_units import (
    BUILT_UNQUANTIZED,
    FUSED_LINEARS,
    RENAMED,
    built_unquantized,
    engine_name,
    fuse,
)
from quantaudit.model.structure import expert_lists
from quantaudit.recipe.parse import parse_recipe
from quantaudit.recipe.resolve import resolve
from tests.families import family_model
from tests.skeletons import shell_of, skeleton

INT8 = "weights: {num_bits: 8, strategy: channel}"
STATIC = f"{INT8}, input_activations: {{num_bits: 8, strategy: tensor, observer: static_minmax}}"
DYNAMIC = f"{INT8}, input_activations: {{num_bits: 8, strategy: token, dynamic: true}}"


def recipe(*groups: tuple[list[str], str], ignore: str = "[lm_head]") -> Any:
    rows = ", ".join(f"g{i}: {{targets: {targets}, {scheme}}}" for i, (targets, scheme) in enumerate(groups))
    text = f"q_stage: {{q_modifiers: {{QuantizationModifier: {{ignore: {ignore}, config_groups: {{{rows}}}}}}}}}"
    return parse_recipe(text, "r.yaml")


def units_of(model: nn.Module, kind: str) -> list[Unit]:
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    layers = [(name, module) for name, module in model.named_modules() if re.fullmatch(r"model\.layers\.\d+", name)]
    return list(units(linears, [bank for name, layer in layers for bank in expert_lists(layer, name)], kind))


def parted(parsed: Any, family: str = "llama") -> dict[str, str | None]:
    shell = shell_of(skeleton(family))
    schemes = resolve(parsed, shell).schemes
    units = units_of(shell, family.replace("-", "_"))
    return {row.unit.name: row.target for row in partings(units, schemes, shell, family.replace("-", "_"))}


# What is saved --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "groups",
    [
        [(["Linear"], DYNAMIC)],
        [(["re:.*down_proj$"], STATIC), (["Linear"], DYNAMIC)],
        [(["re:.*mlp.*"], STATIC), (["model.layers.0.mlp.up_proj", "model.layers.0.mlp.gate_proj"], DYNAMIC)],
    ],
)
def test_the_saved_configuration_is_what_compressed_tensors_collects(groups: list[tuple[list[str], str]]) -> None:
    parsed = recipe(*groups)
    model = skeleton("llama")
    apply_quantization_config(model, parsed.modifiers[0].modifier.resolved_config, show_progress=False)
    collected = QuantizationConfig.from_pretrained(model)
    assert collected is not None
    shell = shell_of(skeleton("llama"))
    saved = saved_config(resolve(parsed, shell).schemes, shell, "llama")
    assert list(saved.targets) == [target for scheme in collected.config_groups.values() for target in scheme.targets]
    assert saved.ignore == frozenset(collected.ignore or [])


# How it is read -------------------------------------------------------------------------------------------------------


def as_vllm(name: str, class_name: str, targets: OrderedDict[str, str], fused: dict[str, list[str]]) -> str | None:
    """The engine's order of matching, from its documentation: name, parts of a fused name, class."""

    def hit(value: str, target: str) -> bool:
        return re.match(target[3:], value) is not None if target.startswith("re:") else target == value

    for target, scheme in targets.items():
        if hit(name, target):
            return scheme
    leaf = name.rpartition(".")[2]
    if leaf in fused:
        firsts = []
        for part in fused[leaf]:
            other = name.removesuffix(leaf) + part
            firsts.append(next((scheme for target, scheme in targets.items() if hit(other, target)), None))
        if all(firsts):
            return firsts[0]
    for target, scheme in targets.items():
        if target.lower() in class_name.lower() and not target.startswith("re:"):
            return scheme
    return None


@pytest.mark.parametrize("seed", range(60))
def test_partings_are_those_of_a_second_reading(seed: int) -> None:
    """Random groups of targets on a llama: wherever the two readings differ, and nowhere else, there is a parting."""
    generator = torch.Generator().manual_seed(seed)
    pool = [
        "Linear", "re:.*self_attn.*", "re:.*_proj$", "re:.*(q|k|v)_proj$", "re:.*mlp.*", "re:.*down_proj$",
        "model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj", "re:model.layers.2.*", "re:.*o_proj",
        "model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj", "re:.*qkv_proj$", "re:.*v_proj$",
    ]  # fmt: skip
    chosen = [pool[i] for i in torch.randperm(len(pool), generator=generator)[:5].tolist()]
    groups = [(chosen[:2], STATIC), (chosen[2:4], DYNAMIC), (chosen[4:], INT8)]
    parsed = recipe(*groups)
    shell = shell_of(skeleton("llama"))
    schemes = resolve(parsed, shell).schemes
    names = {id(scheme): str(number) for number, scheme in enumerate(schemes.values())}
    kinds = {name: str(schemes[name].model_dump(exclude={"targets"})) for name in schemes}
    targets: OrderedDict[str, str] = OrderedDict()
    for name, scheme in schemes.items():
        for target in scheme.targets:
            if names.get(id(scheme)):
                targets[target] = kinds[name]
    fused = {row.name: list(row.members) for row in FUSED_LINEARS if row.name in ("qkv_proj", "gate_up_proj")}
    fused["gate_up_proj"] = ["gate_proj", "up_proj"]
    expected = set()
    for unit in units_of(shell, "llama"):
        given = {kinds.get(member) for member in unit.members}
        if len(given) == 1 and given != {None}:
            class_name = "MergedColumnParallelLinear" if unit.kind == "fused" else "RowParallelLinear"
            if as_vllm(unit.name, class_name, targets, fused) not in given:
                expected.add(unit.name)
    result = {
        row.unit.name for row in partings(units_of(shell, "llama"), schemes, shell, "llama") if row.saved is not None
    }
    assert result == expected


def test_an_exact_name_after_an_expression_is_read_otherwise() -> None:
    name = "model.layers.1.self_attn.o_proj"
    assert parted(recipe((["re:.*_proj$"], DYNAMIC), ([name], STATIC))) == {name: "re:.*_proj$"}
    assert parted(recipe((["re:.*_proj$"], DYNAMIC), (["model.layers.0.self_attn.o_proj"], DYNAMIC))) == {}


def test_an_expression_is_not_translated_to_the_engines_names() -> None:
    """Mixtral's experts are `block_sparse_moe.experts.N.w1` to the engine, whatever they are called here."""
    misread = parted(recipe((["re:.*mlp.experts.*"], DYNAMIC), (["re:.*self_attn.*"], STATIC)), "mixtral")
    assert set(misread) == {name for name in misread if name.endswith("mlp.experts")} != set()
    assert parted(recipe((["Linear"], DYNAMIC)), "mixtral") == {}


def test_a_class_is_the_last_resort_of_both() -> None:
    assert parted(recipe((["Linear"], DYNAMIC), (["re:.*down_proj$"], STATIC))) == {}
    assert parted(recipe((["Linear"], DYNAMIC)), "qwen3-moe") == {}


# The table ------------------------------------------------------------------------------------------------------------

MEMBERS = {
    "llama": {"qkv_proj", "gate_up_proj"},
    "deepseek-v3": {"fused_qkv_a_proj", "gate_up_proj"},
    "qwen3.5": {"qkv_proj", "gate_up_proj", "in_proj_qkvz", "in_proj_ba"},
    "phi3": set(),
    "gpt2": set(),
}


@pytest.mark.parametrize("family", MEMBERS)
def test_rows_meet_the_names_of_real_models(family: str) -> None:
    model = skeleton(family)
    names = {unit.name.rpartition(".")[2] for unit in units_of(model, model.config.model_type) if unit.kind == "fused"}
    assert names == MEMBERS[family]


@pytest.mark.parametrize(
    ("config", "changes", "unquantized", "fused"),
    [
        (
            "DeepseekV32Config",
            {"q_lora_rank": 16, "kv_lora_rank": 16, "index_head_dim": 16, "index_n_heads": 2},
            {"indexer.wk", "indexer.weights_proj"},
            {"fused_qkv_a_proj", "wk_weights_proj"},
        ),
        ("MambaConfig", {"state_size": 8}, {"in_proj", "x_proj", "dt_proj", "out_proj"}, set()),
        ("Qwen2MoeConfig", {"num_experts": 4, "num_experts_per_tok": 2}, {"shared_expert_gate"}, {"qkv_proj"}),
        ("Qwen3NextConfig", {"num_experts": 4, "num_experts_per_tok": 2}, {"shared_expert_gate"}, {"gate_up_proj"}),
    ],
)
def test_what_engines_build_unquantized_is_there_by_these_names(
    config: str, changes: dict[str, Any], unquantized: set[str], fused: set[str]
) -> None:
    import transformers

    cls = getattr(transformers, config, None)
    if cls is None:
        pytest.skip(f"transformers has no {config}")
    instance = cls(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, head_dim=8, **changes,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(instance)
    modules = dict(model.named_modules())
    names = set()
    for name, module in modules.items():
        if isinstance(module, nn.Linear):
            parent, above = name.rpartition(".")[0], name.rpartition(".")[0].rpartition(".")[0]
            siblings = {*modules[parent]._modules, *modules[above]._modules}
            if built_unquantized(name, siblings, instance.model_type):
                names.add(name)
    for leaf in unquantized:
        assert any(name.endswith(leaf) for name in names), (leaf, names)
    assert not any(name.endswith(("q_proj", "down_proj", "lm_head")) for name in names)
    linears = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    assert fused <= {projection for _, projection, leaves in fuse(linears, instance.model_type) if len(leaves) > 1}


def test_every_row_names_its_source() -> None:
    for row in (*FUSED_LINEARS, *BUILT_UNQUANTIZED, *RENAMED):
        assert re.search(r"\.py(: \w+)?$", row.source)


def test_a_gate_of_attention_is_no_router() -> None:
    assert built_unquantized("model.layers.0.self_attn.gate", {"q_proj"}, "x") is None
    assert built_unquantized("model.layers.0.mlp.gate", {"experts", "gate"}, "x") is not None
    assert built_unquantized("model.layers.0.mlp.experts.0.gate_proj", {"experts", "0"}, "x") is None


def test_names_of_multimodal_models_are_the_engines() -> None:
    assert engine_name("model.language_model.layers.3.mlp.up_proj", "qwen2_5_vl") == (
        "language_model.model.layers.3.mlp.up_proj"
    )
    assert engine_name("model.layers.0.mlp.experts.1.up_proj", "mixtral") == (
        "model.layers.0.block_sparse_moe.experts.1.w3"
    )
    assert family_model("mixtral").config.model_type == "mixtral"
