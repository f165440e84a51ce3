"""Kinds of artifacts that no engine can run, or reads as something else, each made of a healthy one in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from quantaudit.card.schema import Card
from quantaudit.conform.run import Conformance
from tests import artifact_mutations as made

DOWN = "model.layers.1.mlp.down_proj"
GATE = "model.layers.0.mlp.gate_proj"
Q = "model.layers.0.self_attn.q_proj"
EXPERT = "model.layers.1.mlp.experts.2.up_proj"
HEAD = "quant_stage: {quant_modifiers: {QuantizationModifier: {ignore: [lm_head, 're:.*mlp.gate$'], config_groups: {"
INT8 = "weights: {num_bits: 8, strategy: channel}, input_activations: {num_bits: 8, strategy: tensor"
MIXED = (
    HEAD + "a: {targets: ['re:.*down_proj$'], " + INT8 + ", observer: static_minmax}}, "
    "b: {targets: ['re:.*(q|k|v|o|gate|up)_proj$'], weights: {num_bits: 4, strategy: group, group_size: 128}}}}}}"
)
CACHE = (
    HEAD + "a: {targets: [Linear], " + INT8 + ", observer: static_minmax}}}, "
    "kv_cache_scheme: {num_bits: 8, type: float, symmetric: true, strategy: tensor}}}}"
)
AVERAGED = HEAD + "a: {targets: [Linear], " + INT8 + ", observer: minmax}}}}}}"
COMPENSATED = "quant_stage: {quant_modifiers: {GPTQModifier: {ignore: [lm_head], targets: [Linear], scheme: W4A16}}}"
RECIPES = {"mixed": MIXED, "cache": CACHE, "averaged": AVERAGED, "gptq": COMPENSATED}
Change = Callable[[made.Tensors, made.Config], None]


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Conformance]:
    """Audits an artifact of (model, preset or recipe) after a change of its tensors and configuration."""
    root = tmp_path_factory.mktemp("contract")

    @cache
    def source(kind: str) -> tuple[Path, Card]:
        folder = made.model_folder(kind, root / kind)
        return folder, made.card_of(folder)

    @cache
    def subject(kind: str, preset: str) -> made.Subject:
        return made.subject(kind, preset, *source(kind), root / f"{kind}-{preset}", RECIPES.get(preset))

    def run(kind: str, preset: str, change: Change | None = None) -> Conformance:
        healthy = subject(kind, preset)
        tensors, config = {k: v.clone() for k, v in healthy.tensors.items()}, copy.deepcopy(healthy.config)
        if change is not None:
            change(tensors, config)
        return healthy.audit(tensors, config)

    return run


def codes(result: Conformance, module: str | None = None) -> set[str]:
    rows = [row for row in result.findings if row.severity != "info"]
    return {row.code for row in rows if module is None or row.module == module}


def groups(config: made.Config) -> dict[str, Any]:
    found: dict[str, Any] = config["quantization_config"]["config_groups"]
    return found


def weights_with(**changes: Any) -> Change:
    """Changes arguments of the weights of the first group."""

    def change(_: made.Tensors, config: made.Config) -> None:
        groups(config)["group_0"]["weights"].update(changes)

    return change


def dense(tensors: made.Tensors, module: str, *shape: int) -> None:
    """Puts a plain weight where a quantized module was."""
    for name in [name for name in tensors if name.startswith(f"{module}.") and not name.endswith("bias")]:
        del tensors[name]
    tensors[f"{module}.weight"] = torch.randn(shape).mul(0.1).bfloat16()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_healthy_artifacts_of_several_groups_of_caches_and_of_averages_pass(
    name: str, audit: Callable[..., Conformance]
) -> None:
    result = audit("dense", name)
    assert result.outcome == "pass"
    assert codes(result) == set()


@pytest.mark.parametrize(
    ("preset", "leaf"),
    [("NVFP4", "input_global_scale"), ("NVFP4", "weight_global_scale"), ("W4A16_ASYM", "weight_zero_point"),
     ("W4A16", "weight_shape"), ("FP8", "input_scale"), ("MXFP4", "weight_packed")],
)  # fmt: skip
def test_every_tensor_that_a_scheme_calls_for_must_be_there(
    preset: str, leaf: str, audit: Callable[..., Conformance]
) -> None:
    result = audit("dense", preset, lambda tensors, _: tensors.pop(f"{DOWN}.{leaf}"))
    assert result.outcome == "fail"
    assert {row.module for row in result.findings if row.severity == "error"} == {DOWN}
    assert any(row.code == "QA606" and f"`{DOWN}.{leaf}` is missing" in row.message for row in result.findings)


def test_a_missing_module_or_layer_is_missing_and_not_another_model(audit: Callable[..., Conformance]) -> None:
    def lose(stem: str) -> Change:
        return lambda tensors, _: [tensors.pop(name) for name in list(tensors) if name.startswith(stem)]  # type: ignore[return-value]

    assert codes(audit("dense", "W8A8", lose(f"{DOWN}.")), DOWN) == {"QA610"}
    whole = audit("dense", "W8A8", lose("model.layers.1."))
    assert whole.outcome == "fail"
    assert {row.code for row in whole.findings if row.severity == "error"} == {"QA610"}
    assert len([row for row in whole.findings if row.severity == "error"]) == 7 + 2  # Linears and norms


def test_scales_of_a_cache_must_be_there_and_be_believable(audit: Callable[..., Conformance]) -> None:
    attention = "model.layers.1.self_attn"
    gone = audit("dense", "cache", lambda tensors, _: tensors.pop(f"{attention}.k_scale"))
    assert codes(gone, attention) == {"QA606"}
    absurd = audit("dense", "cache", lambda tensors, _: tensors[f"{attention}.v_scale"].fill_(1e6))
    assert codes(absurd, attention) == {"QA603"}
    unasked = audit("dense", "cache", lambda _, config: config["quantization_config"].update(kv_cache_scheme=None))
    assert codes(unasked, attention) == {"QA611"}


@pytest.mark.parametrize("preset", ["W4A16", "W8A8", "FP8", "NVFP4"])
@pytest.mark.parametrize("pattern", [DOWN, "re:.*layers.1.mlp.down_proj$"])
def test_an_ignored_module_must_not_be_stored_quantized(
    preset: str, pattern: str, audit: Callable[..., Conformance]
) -> None:
    result = audit("dense", preset, lambda _, config: config["quantization_config"]["ignore"].append(pattern))
    assert codes(result) == {"QA611"}
    assert codes(result, DOWN) == {"QA611"}


def test_shapes_types_and_formats_other_than_the_configurations(audit: Callable[..., Conformance]) -> None:
    def cut(tensors: made.Tensors, _: made.Config) -> None:
        packed = tensors[f"{DOWN}.weight_packed"]
        tensors[f"{DOWN}.weight_packed"] = packed[:, : packed.shape[1] // 2]

    assert codes(audit("dense", "W4A16", cut), DOWN) == {"QA612"}
    assert "QA612" in codes(audit("dense", "W4A16", weights_with(group_size=32)), DOWN)
    assert "QA612" in codes(audit("dense", "W4A16", weights_with(num_bits=8)), DOWN)
    assert "QA612" in codes(audit("dense", "FP8_DYNAMIC", weights_with(strategy="tensor")), DOWN)
    assert "QA613" in codes(audit("dense", "FP8_DYNAMIC", weights_with(type="int")), DOWN)

    def plain(_: made.Tensors, config: made.Config) -> None:
        config["quantization_config"]["format"] = groups(config)["group_0"]["format"] = "int-quantized"

    assert audit("dense", "W4A16", plain).outcome == "fail"


def test_a_single_value_may_have_any_number_of_axes(audit: Callable[..., Conformance]) -> None:
    def flatten(tensors: made.Tensors, _: made.Config) -> None:
        tensors[f"{DOWN}.input_scale"] = tensors[f"{DOWN}.input_scale"].reshape(())
        tensors[f"{DOWN}.weight_scale"] = tensors[f"{DOWN}.weight_scale"].reshape(1, 1)

    assert codes(audit("dense", "FP8", flatten)) == set()


def test_groups_that_swap_or_share_their_targets(audit: Callable[..., Conformance]) -> None:
    def swap(_: made.Tensors, config: made.Config) -> None:
        first, second = groups(config).values()
        first["targets"], second["targets"] = second["targets"], first["targets"]

    swapped = audit("dense", "mixed", swap)
    assert codes(swapped, DOWN) == {"QA617"}
    assert codes(swapped, Q) == {"QA617"}

    def share(_: made.Tensors, config: made.Config) -> None:
        for group in groups(config).values():
            group["targets"] = ["Linear"]

    shared = audit("dense", "mixed", share)
    assert {"QA617", "QA618"} <= codes(shared)
    assert any(row.code == "QA618" and "both target `Linear`" in row.message for row in shared.findings)


def test_fused_units_of_mixed_schemes(audit: Callable[..., Conformance]) -> None:
    def query(tensors: made.Tensors, config: made.Config) -> None:
        dense(tensors, Q, 128, 128)
        config["quantization_config"]["ignore"].append(Q)

    assert codes(audit("dense", "W4A16", query)) == {"QA619", "QA627"}  # and its weights are others

    def expert(tensors: made.Tensors, config: made.Config) -> None:
        dense(tensors, EXPERT, 128, 128)
        config["quantization_config"]["ignore"].append(EXPERT)

    mixed = audit("moe", "W4A16", expert)
    assert codes(mixed) == {"QA619", "QA627"}
    assert codes(mixed, EXPERT) == {"QA619", "QA627"}


def test_global_scales(audit: Callable[..., Conformance]) -> None:
    gate, down = f"{GATE}.weight_global_scale", f"{DOWN}.input_global_scale"
    assert codes(audit("dense", "NVFP4", lambda tensors, _: tensors[gate].div_(2))) == {"QA620", "QA627"}
    assert "QA603" in codes(audit("dense", "NVFP4", lambda tensors, _: tensors[down].reciprocal_()), DOWN)
    clips = audit("dense", "NVFP4", lambda tensors, _: tensors[down].mul_(3))
    assert codes(clips, DOWN) == {"QA604"}
    (row,) = [row for row in clips.ranges if row.module == DOWN]
    assert row.coverage == pytest.approx(1 / 3, rel=0.01)


def test_a_tied_head_that_is_quantized(audit: Callable[..., Conformance]) -> None:
    def tie(tensors: made.Tensors, config: made.Config) -> None:
        config["tie_word_embeddings"] = True
        head = tensors["lm_head.weight"].float()
        scale = head.abs().amax(1, keepdim=True) / 127.5
        tensors["lm_head.weight"] = (head / scale).round().clamp(-128, 127).to(torch.int8)
        tensors["lm_head.weight_scale"] = scale.bfloat16()
        config["quantization_config"]["ignore"] = []

    result = audit("dense", "W8A8", tie)
    assert codes(result) == {"QA621", "QA624"}
    (row,) = [row for row in result.findings if row.code == "QA621"]
    assert "lm_head" in row.message


def test_exponents_are_decoded(audit: Callable[..., Conformance]) -> None:
    def plant(value: int) -> Change:
        return lambda tensors, _: tensors[f"{DOWN}.weight_scale"][0, :1].fill_(value)  # type: ignore[return-value]

    assert codes(audit("dense", "MXFP4", plant(255)), DOWN) == {"QA601"}
    assert codes(audit("dense", "MXFP4", plant(250)), DOWN) >= {"QA603"}
    assert codes(audit("dense", "MXFP8", plant(255)), DOWN) == {"QA601"}


def test_a_range_that_was_averaged_may_clip(audit: Callable[..., Conformance]) -> None:
    name = f"{DOWN}.input_scale"
    halved = audit("dense", "averaged", lambda tensors, _: tensors[name].div_(2))
    assert codes(halved, DOWN) == set()
    assert any(row.code == "QA604" and row.module == DOWN and row.severity == "info" for row in halved.findings)
    assert codes(audit("dense", "averaged", lambda tensors, _: tensors[name].div_(40)), DOWN) >= {"QA604"}
    assert codes(audit("dense", "cache", lambda tensors, _: tensors[name].div_(2)), DOWN) == {"QA604"}


def test_the_configuration_under_an_older_key_is_read_and_said(audit: Callable[..., Conformance]) -> None:
    def move(_: made.Tensors, config: made.Config) -> None:
        config["compression_config"] = config.pop("quantization_config")

    result = audit("dense", "W4A16", move)
    assert codes(result) == {"QA622"}
    assert "compression_config" in next(row.message for row in result.findings if row.code == "QA622")


# How far rounding takes a weight from the model's ---------------------------------------------------------------------


def scaled(factor: float, only: str = "") -> Change:
    """Multiplies scales of weights; of global scales, which divide, the inverse."""

    def change(tensors: made.Tensors, _: made.Config) -> None:
        for name, tensor in tensors.items():
            if only in name and name.endswith("weight_scale") and tensor.dtype is torch.bfloat16:
                tensors[name] = tensor * factor
            if only in name and name.endswith("weight_global_scale"):
                tensors[name] = tensor / factor

    return change


def coarse(tensors: made.Tensors, _: made.Config) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype is torch.int8:
            tensors[name] = ((tensor.int() + 16) // 32 * 32).clamp(-127, 127).to(torch.int8)


@pytest.mark.parametrize(
    ("preset", "change", "where"),
    [
        ("W8A8", scaled(0.65), None),
        ("W8A8", scaled(1.02), None),
        ("W8A8", coarse, None),
        ("FP8", scaled(0.97), None),
        ("W4A16", scaled(1.1), None),
        ("NVFP4", scaled(0.95), None),
        ("W8A8", scaled(0.5, DOWN), DOWN),
        ("W4A16", scaled(0.6, DOWN), DOWN),
        ("NVFP4", scaled(1.7, DOWN), DOWN),
    ],
)
def test_weights_that_are_further_off_than_their_rounding_fail_once(
    preset: str, change: Change, where: str | None, audit: Callable[..., Conformance]
) -> None:
    result = audit("dense", preset, change)
    assert result.outcome == "fail"
    assert [row.module for row in result.findings if row.code == "QA627"] == [where]
    row = next(row for row in result.findings if row.code == "QA627")
    assert "rounding explains" in row.message


def test_dead_rows_of_one_weight_make_it_no_other(audit: Callable[..., Conformance]) -> None:
    """As pruning and padding leave them."""

    def dead(tensors: made.Tensors, _: made.Config) -> None:
        tensors[f"{DOWN}.weight"] = tensors[f"{DOWN}.weight"].clone()
        tensors[f"{DOWN}.weight"][5:15] = 0

    assert "QA627" not in codes(audit("dense", "W8A8", dead))


def test_gptq_may_be_further_off_than_rounding_to_the_nearest(audit: Callable[..., Conformance]) -> None:
    assert codes(audit("dense", "gptq")) == set()
    factor = audit("dense", "gptq", scaled(1.2))
    assert [row.module for row in factor.findings if row.code == "QA627"] == [None]


# A configuration that does not fit what is stored ---------------------------------------------------------------------


def whole(**changes: Any) -> Change:
    return lambda _, config: config["quantization_config"].update(changes)


def group(**changes: Any) -> Change:
    return lambda _, config: groups(config)["group_0"].update(changes)


def without_status(_: made.Tensors, config: made.Config) -> None:
    del config["quantization_config"]["quantization_status"]


@pytest.mark.parametrize(
    ("preset", "change", "text"),
    [
        ("W8A8", whole(quantization_status="frozen"), "is `frozen`"),
        ("W4A16", whole(quantization_status="initialized"), "is `initialized`"),
        ("W8A8", without_status, "is missing"),
        ("NVFP4", whole(format="mxfp4-pack-quantized"), "that of the whole configuration mxfp4-pack-quantized"),
        ("NVFP4", group(format="mxfp4-pack-quantized"), "stores such a scheme as nvfp4-pack-quantized"),
        ("W8A8", whole(format="dense"), "that of the whole configuration dense"),
        ("W8A8", whole(format="pack-quantized"), "that of the whole configuration pack-quantized"),
        ("W8A8", group(format="float-quantized"), "stores such a scheme as int-quantized"),
    ],
)
def test_a_status_or_format_that_does_not_fit_what_is_stored_fails(
    preset: str, change: Change, text: str, audit: Callable[..., Conformance]
) -> None:
    result = audit("dense", preset, change)
    assert result.outcome == "fail"
    assert any(text in row.message for row in result.findings if (row.code, row.severity) == ("QA622", "error"))


def test_integers_may_be_stored_under_the_older_name_of_their_format(audit: Callable[..., Conformance]) -> None:
    def rename(_: made.Tensors, config: made.Config) -> None:
        config["quantization_config"]["format"] = groups(config)["group_0"]["format"] = "naive-quantized"

    assert audit("dense", "W8A8", rename).outcome == "pass"


def test_quantized_outputs_are_said_to_be_unknown(audit: Callable[..., Conformance]) -> None:
    outputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    result = audit("dense", "W8A8", group(output_activations=outputs))
    assert result.outcome == "inconclusive"
    assert codes(result) == {"QA628"}
    assert "quantizes the outputs" in next(row.message for row in result.findings if row.code == "QA628")


# Tensors that are stored twice ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "layers"), [("moe", [0]), ("moe", [0, 1]), ("mixtral", [0]), ("mixtral", [0, 1])])
@pytest.mark.parametrize("name", ["gate_up_proj", "of_another_model"])
def test_merged_experts_next_to_single_ones_are_no_part_of_the_model(
    kind: str, layers: list[int], name: str, audit: Callable[..., Conformance]
) -> None:
    paths = [f"model.layers.{layer}.mlp.experts.{name}" for layer in layers]
    fused = torch.randn(4, 256, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    result = audit(kind, "W8A8", lambda tensors, _: tensors.update(dict.fromkeys(paths, fused)))
    assert result.outcome == "fail"
    assert [row.module for row in result.findings if row.code == "QA626"] == [path.rpartition(".")[0] for path in paths]
