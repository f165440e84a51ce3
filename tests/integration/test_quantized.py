"""Checkpoints whose weights are quantized already are dequantized, exactly, and say so."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantaudit.measure.profile import profile_bytes
from quantaudit.measure.run import measure
from quantaudit.model.loading.load import LoadedModel
from tests.builders import load, random_corpus, save_checkpoint, tiny_model
from tests.families import family_model

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""The values of the sixteen E2M1 codes."""


def rewrite(folder: Path, weights: dict[str, Tensor], quantization: dict[str, object]) -> Path:
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": quantization}))
    return folder


def measured(loaded: LoadedModel, folder: Path) -> None:
    corpus = random_corpus([40, 33, 30, 29])
    profile = measure(loaded, corpus)
    parts = load(folder, by_block=True)  # dequantized a block at a time
    assert parts.weights is not None
    assert parts.weights.converted
    assert profile_bytes(measure(parts, corpus)) == profile_bytes(profile)
    assert profile.whole("layers.1.self_attn.qkv_proj.input") is not None
    assert not [row for row in profile.provenance.unmeasured if "Linear" in row.reason]


def test_fp8_weights_are_dequantized(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", tiny_model("llama"))
    weights, expected = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        weights[name] = weight
        if name.endswith("_proj.weight"):
            scale = weight.float().abs().max() / 448
            weights[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
            weights[f"{name}_scale_inv"] = scale.reshape(1, 1)
            expected[name] = (weights[name].float() * scale).bfloat16()
    rewrite(folder, weights, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]})
    loaded = load(folder)
    found = loaded.model.state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=2**-7, atol=0)
    assert "quantized already (fp8)" in loaded.info.notes[0]
    assert loaded.info.dtype == "bfloat16"
    measured(loaded, folder)


def test_mxfp4_experts_are_dequantized_and_split(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", family_model("gpt-oss"))
    generator = torch.Generator().manual_seed(0)
    weights, decoded = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            weights[name] = weight
            continue
        experts, inputs, outputs = weight.shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(121, 125, blocks.shape[:-1], generator=generator, dtype=torch.uint8)
        weights[f"{name}_blocks"], weights[f"{name}_scales"] = blocks, scales
        values = torch.stack([FP4[(blocks & 15).long()], FP4[(blocks >> 4).long()]], -1).flatten(-2)
        decoded[name] = (values * torch.exp2(scales.float() - 127)[..., None]).flatten(-2)
    rewrite(folder, weights, {"quant_method": "mxfp4", "modules_to_not_convert": []})
    loaded = load(folder)
    found = loaded.model.state_dict()
    for expert in range(4):
        stem = f"model.layers.1.mlp.experts.{expert}"
        fused = decoded["model.layers.1.mlp.experts.gate_up_proj"][expert]
        assert torch.equal(found[f"{stem}.gate_proj.weight"].float(), fused[0::2])
        assert torch.equal(found[f"{stem}.up_proj.weight"].float(), fused[1::2])
        down = decoded["model.layers.1.mlp.experts.down_proj"][expert]
        assert torch.equal(found[f"{stem}.down_proj.weight"].float(), down)
    assert "quantized already (mxfp4)" in loaded.info.notes[0]
    assert "linearization" in loaded.info.notes[1]
    measured(loaded, folder)
