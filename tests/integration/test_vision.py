"""Vision-language models under text: the language model is measured, the vision tower is listed, nothing is ready."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from quantaudit.card.build import build_card
from quantaudit.measure import measure
from quantaudit.model.checkpoint import locate
from quantaudit.model.load import load_skeleton
from quantaudit.model.sites import discover
from quantaudit.policy import load_policy
from quantaudit.quant.schemes import SCHEMES
from quantaudit.simulate.run import simulate
from tests.builders import VOCABULARY, load, random_corpus, save_checkpoint

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 256,
    "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip


def qwen() -> Any:
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    vision = {"depth": 3, "hidden_size": 128, "intermediate_size": 512, "num_heads": 4, "out_hidden_size": 64}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, tie_word_embeddings=False,
        image_token_id=250, video_token_id=251, vision_start_token_id=252, vision_end_token_id=253,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def gemma() -> Any:
    vision = {
        "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config={**TEXT, "query_pre_attn_scalar": 16}, vision_config=vision, mm_tokens_per_image=4,
        image_token_index=255, boi_token_index=253, eoi_token_index=254,
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(config)


@pytest.mark.parametrize("make", [qwen, gemma])
def test_text_measures_the_language_model_and_lists_the_vision_tower(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = load(save_checkpoint(tmp_path / "m", make().to(torch.bfloat16).eval()))
    corpus = random_corpus([40, 33, 30, 29])
    profile = measure(loaded, corpus)
    architecture = discover(loaded.model)
    assert discover(load_skeleton(locate(str(tmp_path / "m")))) == architecture
    assert len(architecture.blocks) == 2
    assert all("language_model" in block for block in architecture.blocks)
    other = {row.module for row in architecture.unmeasured}  # such as a projector with a bare parameter
    assert all(name.startswith(("model.vision_tower.", "model.multi_modal_projector")) for name in other)
    tower = {
        name
        for name, module in loaded.model.named_modules()
        if isinstance(module, nn.Linear) and "language_model" not in name and name != "lm_head"
    }
    assert tower
    listed = {row.module: row for row in profile.provenance.unmeasured if row.module not in other}
    assert set(listed) == tower
    assert {(row.reason, row.weights) for row in listed.values()} == {("no images in the corpus", True)}
    simulation = simulate(loaded, profile, corpus.samples, list(SCHEMES.values()), evaluation_tokens=64)
    card = build_card(profile, [], simulation, load_policy("default"), timings={})
    assert {scheme.status for scheme in card.verdict.schemes} == {"INCONCLUSIVE"}
    assert card.simulation.recipes[0].kl is not None
