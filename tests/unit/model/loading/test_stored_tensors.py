"""What is stored, and what of it is used: from headers alone, and by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantaudit.errors import ModelError
from quantaudit.model.loading.checkpoint import Checkpoint, locate
from quantaudit.model.loading.stored_tensors import (
    Stored,
    check_quantized_storage,
    judge_unused,
    quantized_names,
    stored_tensors,
)
from tests.builders import load, save_checkpoint, tiny_model

PLAIN = {
    "a.weight": Stored("BF16", (4, 4)),
    "a.bias": Stored("BF16", (4,)),
    "h.0.attn.bias": Stored("U8", (1, 1, 4, 4)),
}
PLAIN |= {"embeddings.position_ids": Stored("I64", (1, 4)), "router.tid2eid": Stored("I32", (9, 2))}
PLAIN |= {"layer_scale": Stored("BF16", (4,)), "altup.correct_output_scale": Stored("F32", (4,))}


def checkpoint(quantization: str | None = None) -> Checkpoint:
    return Checkpoint(
        spec="m", name="m", folder=Path("m"), gguf=None, revision=None, weights=(), quantization=quantization
    )


def test_headers_are_read_of_all_shards(tmp_path: Path) -> None:
    model = tiny_model("llama")
    folder = save_checkpoint(tmp_path / "m", model, max_shard_size="60KB")
    actual = stored_tensors(locate(str(folder)))
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert {name: tensor.shape for name, tensor in actual.items()} == {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }
    assert {tensor.dtype for tensor in actual.values()} == {"BF16"}


def test_plain_weights_pass_and_so_do_masks_and_tables() -> None:
    assert quantized_names(PLAIN) == []
    check_quantized_storage(checkpoint(), PLAIN)


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [
        ("b.weight", "I8", "int8 in b.weight"),
        ("b.weight", "U8", "uint8"),
        ("b.weight", "F8_E4M3", "float8_e4m3"),
        ("b.weight_packed", "I32", "int32"),
        ("b.qweight", "I32", "int32"),
        ("b.weight_scale", "BF16", "b.weight_scale"),
        ("b.weight_scale_inv", "F32", "b.weight_scale_inv"),
        ("b.weight_zero_point", "I8", "b.weight_zero_point"),
        ("b.input_scale", "F32", "b.input_scale"),
        ("b.SCB", "F32", "b.SCB"),
        ("experts.gate_up_proj_blocks", "U8", "uint8"),
        ("experts.down_proj_scale", "F32", "experts.down_proj_scale"),
    ],
)
def test_quantized_storage_without_a_word_is_refused(name: str, dtype: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        check_quantized_storage(checkpoint(), PLAIN | {name: Stored(dtype, (4, 4))})


def test_a_configuration_that_says_fp8_of_plain_files_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"says that weights are quantized \(fp8\), and none are: .* bfloat16"
    ) as caught:
        check_quantized_storage(checkpoint("fp8"), PLAIN)
    assert "quantization_config" in (caught.value.hint or "")


def test_fp8_without_its_scale_is_refused_and_with_it_is_not() -> None:
    codes = {"b.weight": Stored("F8_E4M3", (4, 4)), "c.weight": Stored("F8_E4M3", (4, 4))}
    scales = {"b.weight_scale_inv": Stored("F32", (1, 1))}
    with pytest.raises(ModelError, match=r"1 FP8 weights have no scale, such as c\.weight"):
        check_quantized_storage(checkpoint("fp8"), PLAIN | codes | scales)
    check_quantized_storage(checkpoint("fp8"), PLAIN | codes | scales | {"c.weight_scale_inv": Stored("F32", (1, 1))})
    # Scales of NVFP4 are FP8 numbers themselves.
    packed = {"d.weight_packed": Stored("U8", (4, 2)), "d.weight_scale": Stored("F8_E4M3", (4, 1))}
    check_quantized_storage(checkpoint("compressed-tensors"), PLAIN | packed)


HARMLESS = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": "caches of rotary positions",
    "transformer.h.0.attn.masked_bias": "causal masks",
    "model.embeddings.position_ids": "tables of positions",
    "mtp.layers.0.mlp.up_proj.weight": "heads for several next tokens (MTP)",
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_known_to_be_harmless_is_a_note(name: str) -> None:
    notes, doubts = judge_unused(checkpoint(), tiny_model("llama"), [name], {name: Stored("BF16", (4, 4))})
    assert notes == [f"1 stored tensors are not used: {HARMLESS[name]}"]
    assert doubts == []


def test_a_layer_that_predicts_further_tokens_is_known_by_its_parts() -> None:
    layer = "model.layers.61"
    names = [f"{layer}.eh_proj.weight", f"{layer}.mlp.up_proj.weight"]
    assert judge_unused(checkpoint(), tiny_model("llama"), names, {})[1] == []
    _, doubts = judge_unused(checkpoint(), tiny_model("llama"), names[1:], {})
    assert [(doubt.kind, doubt.module, doubt.count) for doubt in doubts] == [("unused", layer, 1)]


@pytest.mark.parametrize(
    ("names", "modules"),
    [
        (["model.layers.3.mlp.up_proj.weight", "model.layers.3.self_attn.q_proj.weight"], {"model.layers.3": 2}),
        (["model.visual.blocks.0.qkv.weight", "model.visual.merger.weight"], {"model.visual": 2}),
        (["model.layers.0.self_attn.q_proj.bias"], {"model.layers.0.self_attn.q_proj.bias": 1}),
        (["model.layers.0.attention.bias"], {"model.layers.0.attention": 1}),
    ],
)
def test_whatever_else_is_unused_is_a_doubt_by_its_outermost_module(names: list[str], modules: dict[str, int]) -> None:
    stored = {name: Stored("BF16", (4,)) for name in names}
    _, doubts = judge_unused(checkpoint(), tiny_model("llama"), names, stored)
    assert {doubt.module: doubt.count for doubt in doubts} == modules


def test_unused_scales_are_refused() -> None:
    with pytest.raises(ModelError, match="1 scales of quantized weights are stored and not used"):
        judge_unused(checkpoint(), tiny_model("llama"), ["model.layers.0.mlp.up_proj.lut_scale"], {})


def test_a_checkpoint_with_caches_of_old_is_loaded_without_doubt(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama"))
    path = folder / "model.safetensors"
    caches = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(3)}
    save_file({**load_file(path), **caches}, path, metadata={"format": "pt"})
    info = load(folder).info
    assert info.notes == ["3 stored tensors are not used: caches of rotary positions"]
    assert info.doubts == []
