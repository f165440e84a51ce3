"""A tiny random model of any architecture that the installed transformers maps to a language model.

Sizes are recognized by the words in their names, in a configuration and in the parts of it. What does not run with
them is tried with one or more of the `VARIANTS`; what cannot be guessed is in `SPECIAL`.
"""

from __future__ import annotations

import inspect
import re
from itertools import combinations
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT,
)

from tests.builders import BYTES, PAD, VOCABULARY

LAYERS = 2
IMAGE = VOCABULARY - 4

_SIZES: tuple[tuple[str, Any], ...] = (
    ("vocab_size vocab_size_per_layer_input encoder_hash_byte_group_vocab num_embeddings", VOCABULARY),
    ("pad_token_id pad_id", PAD),
    ("bos_token_id", BYTES + 1),
    ("eos_token_id sep_token_id cls_token_id", BYTES + 2),
    ("image_token_id image_token_index video_token_id video_token_index audio_token_id", IMAGE),
    ("mamba_num_heads mamba_n_heads n_mamba_heads", 8),
    ("mamba_head_dim mamba_headdim mamba_d_head", 16),
    ("num_key_value_heads num_kv_heads n_kv_heads kv_n_heads multi_query_group_num num_global_key_value_heads", 2),
    ("num_attention_heads n_head n_heads num_heads attention_heads num_q_heads", 4),
    ("linear_num_key_heads", 2),
    ("linear_num_value_heads", 4),
    ("head_dim linear_key_head_dim linear_value_head_dim d_kv global_head_dim kv_channels swa_head_dim", 16),
    ("rotary_dim qk_rope_head_dim", 8),
    ("qk_nope_head_dim v_head_dim kv_lora_rank", 16),
    ("q_lora_rank", 32),
    ("hidden_size hidden_size_global d_model n_embd embed_dim embedding_size word_embed_proj_dim dim hidden_dim "
     "output_dim n_embed attention_hidden_size projection_dim mm_hidden_size lru_width", 64),
    ("moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size expert_dim "
     "moe_shared_expert_intermediate_size", 32),
    ("intermediate_size mamba_d_ssm intermediate_size_mlp ffn_dim n_inner d_ff ffn_hidden_size inner_dim mlp_dim "
     "block_ff_dim mlp_hidden_size", 128),
    ("num_hidden_layers n_layer n_layers num_layers depth encoder_layers decoder_layers n_blocks num_blocks", LAYERS),
    ("num_nextn_predict_layers num_mtp_layers mtp_num_layers num_kv_shared_layers first_k_dense_replace", 0),
    ("num_experts num_local_experts n_routed_experts moe_num_experts num_routed_experts zero_expert_num", 4),
    ("num_experts_per_tok moe_k moe_topk top_k_experts num_selected_experts moe_top_k", 2),
    ("n_shared_experts moe_num_shared_experts num_shared_experts num_shared_expert n_group topk_group "
     "num_expert_group moe_layer_start_index", 1),
    ("max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length seq_length", 300),
    ("sliding_window attention_window_size local_attention attention_chunk_size window_size max_window_layers "
     "chunk_size mamba_chunk_size state_size ssm_state_size mamba_d_state d_state hidden_size_per_layer_input", 16),
    ("time_step_rank mamba_dt_rank", 8),
    ("mamba_n_groups n_groups", 1),
    ("image_size", 28),
    ("patch_size", 14),
    ("spatial_merge_size temporal_patch_size", 2),
    ("initializer_range", 0.2),
    ("use_mambapy use_mamba_kernels use_cache output_router_logits tie_word_embeddings", False),
    ("is_decoder", True),
    ("num_query_tokens mm_tokens_per_image", 4),
    ("mrope_section", [2, 3, 3]),
    ("partial_rotary_factor", 1.0),
)  # fmt: skip
"""What settings are set to where a configuration has them, by the ends of their names; the first that fits counts."""

VARIANTS = ("unset", "derived", "all heads", "sections")
"""What is changed where the plain sizes do not fit each other: sizes without a default are set; what a class derives
from other settings is left to it; there are as many heads of keys as of queries; rotary frequencies are divided into
sections of time, height and width."""
_HEADS = 4
_SECTIONS = [2, 3, 3]
_LAYER_KINDS = {
    "layer_types": "full_attention", "layers_block_type": "full_attention", "block_types": "full_attention",
    "mlp_layer_types": "sparse",
}  # fmt: skip

_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_PICTURES = {"<image>": IMAGE, "<|extra_200|>": IMAGE + 1}
SPECIAL: dict[str, dict[str, Any]] = {
    "falcon": {"ffn_hidden_size": 128},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "hunyuan_v1_moe": {"moe_topk": 2, "num_shared_expert": 1, "moe_intermediate_size": 128, "head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32},
    "reformer": {"attn_layers": ["local", "local"], "axial_pos_embds": False},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}},
    "chameleon": {"vocabulary_map": _PICTURES},
    "emu3": {"vocabulary_map": _PICTURES},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {**_ROPE, "mrope_section": _SECTIONS}}},
    "ernie4_5_vl_moe_text": {"rope_parameters": {**_ROPE, "mrope_section": [3, 3, 2]}},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zaya": {"num_experts_per_tok": 1},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "4/8"},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
}  # fmt: skip
"""What cannot be guessed, by model type."""
PARTS = {
    ("diffusion_gemma", "vision_config"): "gemma4_vision",
    ("gemma4_assistant", "text_config"): "gemma4_text",
    ("gemma4_unified_assistant", "text_config"): "gemma4_unified_text",
}
"""Parts that a class does not give a default to, though its model cannot do without."""


def model_types() -> list[str]:
    """Every model type of a causal language model, or of one of images and text."""
    return sorted({*CAUSAL, *IMAGE_TEXT})


def tiny_config(model_type: str, variant: tuple[str, ...] = ()) -> Any:
    """A configuration of two layers. Raises whatever the class does where the sizes do not fit each other."""
    cls = transformers.CONFIG_MAPPING[model_type]
    return cls(**_of(cls, model_type, variant))


def tiny_model(model_type: str) -> Any:
    """A random bfloat16 model of the class that checkpoints of this type have, in evaluation mode.

    Of all variants the first that runs on a few tokens, or else the first that can be built. Raises what the first
    raised where none can be.
    """
    built, first = None, None
    for variant in (v for count in range(len(VARIANTS) + 1) for v in combinations(VARIANTS, count)):
        try:
            model = _built(model_type, variant)
        except Exception as error:
            first = first or error
            continue
        built = built or model
        try:
            run_briefly(model)
        except Exception:
            continue
        return model
    if built is None:
        assert first is not None
        raise first
    return built


def run_briefly(model: Any) -> None:
    """Run a model on eight tokens. Raises whatever it raises."""
    with torch.no_grad():
        model(input_ids=torch.arange(8)[None], use_cache=False)


def _built(model_type: str, variant: tuple[str, ...]) -> Any:
    torch.manual_seed(0)
    config = tiny_config(model_type, variant)
    auto = transformers.AutoModelForImageTextToText if model_type in IMAGE_TEXT else transformers.AutoModelForCausalLM
    model = auto.from_config(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # some are made as zeros, infinite, or not at all
            wild = not parameter.isfinite().all() or parameter.abs().max() > 1e3
            if parameter.ndim >= 2 and (wild or not parameter.any()):
                parameter.normal_(std=0.1)
            elif wild:
                parameter.zero_()
    model.config.architectures = [type(model).__name__]
    return model


def _of(cls: Any, model_type: str, variant: tuple[str, ...] = ()) -> dict[str, Any]:
    """The settings of a configuration class that differ from its own defaults."""
    base = cls()
    parameters = inspect.signature(cls.__init__).parameters
    # What is not declared follows from other settings, unless nothing is declared.
    names = set(parameters) if len(parameters) > 3 else set(base.to_dict()) | set(parameters)
    settings: dict[str, Any] = {}
    for name in sorted(names):
        try:
            own = getattr(base, name, None)
        except Exception:  # one value for each layer
            continue
        if name in getattr(cls, "sub_configs", {}):
            part = _part(cls, name, own, model_type, variant)
            if part is not None:
                settings[name] = {**_of(part, part.model_type, variant), "model_type": part.model_type}
            continue
        parameter = parameters.get(name)
        derived = "derived" in variant and own is not None and parameter is not None and parameter.default is None
        if name in ("rope_parameters", "rope_scaling"):
            value = _rope(own, variant, derived=derived)
        elif own is None and "unset" in variant:
            value = _unset(name, str(parameter.annotation) if parameter is not None else "")
        else:
            value = None if derived else _value(name, own)
        if value is not None:
            settings[name] = _HEADS if "all heads" in variant and _size(name) == 2 and "kv" in _short(name) else value
    for name, value in SPECIAL.get(model_type, {}).items():
        settings[name] = {**settings[name], **value} if name in cls.sub_configs and name in settings else value
    return settings


def _part(cls: Any, name: str, own: Any, model_type: str, variant: tuple[str, ...]) -> Any:
    """The class of a part's configuration: the family's own if the default is another's; None where there is none."""
    if own is None and (model_type, name) in PARTS:
        return transformers.CONFIG_MAPPING[PARTS[model_type, name]]
    family = f"{model_type}_{name.removesuffix('_config')}"
    if own is not None and own.model_type != family and family in transformers.CONFIG_MAPPING:
        return transformers.CONFIG_MAPPING[family]
    if own is None and "unset" in variant and cls.sub_configs[name] is not transformers.AutoConfig:
        return cls.sub_configs[name]
    return None if own is None else type(own)


def _value(name: str, own: Any) -> Any:
    """What a setting with a default is set to; None for nothing."""
    if isinstance(own, list) and name.endswith(tuple(_LAYER_KINDS)):
        return (list(dict.fromkeys(own)) * LAYERS)[:LAYERS]
    size = _size(name)
    if size is None or own is None or isinstance(own, bool) != isinstance(size, bool):
        return None
    if own == 0 and not isinstance(own, bool) and not name.endswith("_id"):  # switched off
        return None
    if isinstance(own, list) and not isinstance(size, list):
        return [size] * LAYERS
    return size if isinstance(own, int | float | list) else None


def _unset(name: str, annotation: str) -> Any:
    """What a setting without a default is set to: a size, or the kinds of layers."""
    kind = next((kind for end, kind in reversed(_LAYER_KINDS.items()) if name == end), None)
    if kind is not None:
        return [kind] * LAYERS
    size = _size(name)
    return size if "int" in annotation and isinstance(size, int) and not isinstance(size, bool) else None


def _rope(own: Any, variant: tuple[str, ...], *, derived: bool) -> Any:
    """Rotary settings, of all layers or of each kind of them, with sections that fit the head."""
    if not isinstance(own, dict):
        return None
    settings = {
        name: _rope(value, variant, derived=derived)
        if isinstance(value, dict)
        else value
        if derived or (size := _size(name)) is None
        else size
        for name, value in own.items()
    }
    if "sections" in variant and "rope_type" in own:
        return {**settings, "mrope_section": _SECTIONS}
    return None if derived and "sections" not in variant else settings


def _short(name: str) -> str:
    return name.replace("key_value", "kv")


def _size(name: str) -> Any:
    fits = (size for names, size in _SIZES if any(re.search(rf"(^|_){end}$", name) for end in names.split()))
    return next(fits, None)
