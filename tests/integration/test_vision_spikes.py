"""Multimodal models under text: every tensor of the language model is found at its place, as in a language model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from quantaudit.model.experts import linearize
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import discover, non_text_sites
from tests.builders import loaded_from
from tests.families import family_config
from tests.integration.test_families import OWN_OUTPUT, find_spikes
from tests.vision import gemma, qwen


def llama4() -> Any:
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
              "image_size": 28, "patch_size": 14, "vision_output_dim": 64, "projector_input_dim": 64,
              "projector_output_dim": 64}  # fmt: skip
    text = family_config("llama4").to_dict()
    return transformers.Llama4ForConditionalGeneration(
        transformers.Llama4Config(vision_config=vision, text_config=text)
    )


def gemma4() -> Any:
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 4, "head_dim": 16, "patch_size": 4, "image_size": 16}  # fmt: skip
    text = family_config("gemma4").to_dict()
    config = transformers.Gemma4Config(text_config=text, vision_config=vision, audio_config=None)
    return transformers.Gemma4ForConditionalGeneration(config)


def qwen35(moe: bool) -> Any:
    vision = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 64,
              "num_position_embeddings": 16}  # fmt: skip
    name = "Qwen3_5Moe" if moe else "Qwen3_5"
    text = family_config("qwen3.5-moe" if moe else "qwen3.5").to_dict()
    config = getattr(transformers, f"{name}Config")(vision_config=vision, text_config=text)
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


MODELS = {
    "qwen2.5-vl": qwen,
    "gemma3": gemma,
    "gemma4": gemma4,
    "llama4": llama4,
    "qwen3.5": lambda: qwen35(False),
    "qwen3.5-moe": lambda: qwen35(True),
}


@pytest.fixture(scope="module", params=MODELS)
def loaded(request: pytest.FixtureRequest, tiny_loaded: LoadedModel) -> LoadedModel:
    torch.manual_seed(0)
    model = MODELS[request.param]().to(torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # initialized to zero or not at all
            if parameter.ndim >= 2 and (not parameter.any() or not parameter.isfinite().all()):
                parameter.normal_(std=0.2)
    linearize(model)
    return loaded_from(model, tiny_loaded)


def test_every_component_is_a_site_and_every_linear_in_one_group(loaded: LoadedModel) -> None:
    architecture = discover(loaded.model)
    kinds = Counter(site.kind for site in architecture.sites)
    assert (kinds["embedding"], kinds["final_norm"], kinds["residual"], kinds["mlp_output"]) == (1, 1, 2, 2)
    assert sum(kinds[kind] for kind in OWN_OUTPUT) == 2
    assert {site.layer for site in architecture.sites if site.kind == "gate"} == {0, 1}
    assert kinds["router_logits"] == len(architecture.expert_lists)
    members = Counter(member for group in architecture.groups for member in group.members)
    linears = [name for name, module in loaded.model.named_modules() if isinstance(module, nn.Linear)]
    assert members == Counter(linears)


def test_a_planted_spike_is_found_where_it_was_planted(loaded: LoadedModel) -> None:
    architecture = discover(loaded.model)
    # Under text alone nothing runs in the tower; test_vision.py has images.
    aside = non_text_sites(loaded.model, architecture.sites)
    inside = [site for site in architecture.sites if site.name not in aside]
    assert find_spikes(loaded, architecture, inside) >= 12
