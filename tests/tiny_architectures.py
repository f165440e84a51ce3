"""A tiny random model of any architecture that the installed transformers maps to a language model.

Sizes are recognised by the words in their names, in a configuration and in the parts of it; what cannot be guessed so
is in `SPECIAL`.
"""

from __future__ import annotations

import inspect
import re
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

_SIZES: list[tuple[str, Any]] = [
    (r"vocab_size(_per_layer_input)?$|(audio|text)_vocab_size$|num_embeddings$", VOCABULARY),
    (r"(pad_token_id|pad_id)$", PAD),
    (r"bos_token_id$", BYTES + 1),
    (r"eos_token_id$|sep_token_id$|cls_token_id$", BYTES + 2),
    (r"(image|video|audio|vision)\w*_(token_id|token_index)$", IMAGE),
    (r"(num_(key_value|global_key_value)_heads|num_kv_heads|n_kv_heads|multi_query_group_num)$", 2),
    (r"(num_attention_heads|n_heads?|num_heads|attention_heads|num_q_heads|encoder_attention_heads)$", 4),
    (r"linear_num_key_heads$", 2),
    (r"linear_num_value_heads$", 4),
    (r"(head_dim|linear_(key|value)_head_dim|d_kv|attention_head_dim|global_head_dim)$", 16),
    (r"(hidden_size|d_model|n_embd|embed_dim|embedding_size|word_embed_proj_dim|dim|hidden_dim|out_hidden_size|text_hidden_size|n_embed|attention_hidden_size|projection_dim|vision_output_dim|mm_hidden_size|output_dim)$", 64),
    (r"(moe_intermediate_size|expert_ffn_hidden_size|shared_expert_intermediate_size|moe_shared_expert_intermediate_size|ffn_hidden_size_moe|expert_dim)$", 32),
    (r"(intermediate_size(_mlp)?|ffn_dim|n_inner|d_ff|ffn_hidden_size|inner_dim|encoder_ffn_dim|mlp_dim|block_ff_dim|mlp_hidden_size)$", 128),
    (r"(num_hidden_layers|n_layers?|num_layers|depth|encoder_layers|num_encoder_layers|n_blocks|num_blocks)$", LAYERS),
    (r"(num_nextn_predict_layers|num_mtp_layers|mtp_num_layers|num_kv_shared_layers|first_k_dense_replace)$", 0),
    (r"(num_experts|num_local_experts|n_routed_experts|moe_num_experts|num_routed_experts|zero_expert_num)$", 4),
    (r"(num_experts_per_tok|moe_k|moe_topk|top_k_experts|num_selected_experts|moe_top_k)$", 2),
    (r"(n_shared_experts|moe_num_shared_experts|num_shared_experts?|n_group|topk_group|num_expert_group|moe_layer_start_index)$", 1),
    (r"(q_lora_rank)$", 32),
    (r"(kv_lora_rank)$", 16),
    (r"(qk_rope_head_dim)$", 8),
    (r"(qk_nope_head_dim|v_head_dim)$", 16),
    (r"(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length|seq_length|block_size)$", 256),
    (r"(sliding_window|attention_window_size|local_attention|attention_chunk_size|window_size|max_window_layers)$", 16),
    (r"(state_size|ssm_state_size|mamba_d_state|d_state)$", 16),
    (r"(mamba_num_heads|mamba_n_heads|n_mamba_heads)$", 8),
    (r"(mamba_head_dim|mamba_headdim|mamba_d_head)$", 16),
    (r"(chunk_size|mamba_chunk_size)$", 16),
    (r"(time_step_rank|mamba_dt_rank)$", 8),
    (r"(mamba_n_groups|n_groups)$", 1),
    (r"(image_size)$", 28),
    (r"(patch_size)$", 14),
    (r"(spatial_merge_size|temporal_patch_size)$", 2),
    (r"(hidden_size_per_layer_input)$", 16),
    (r"(initializer_range)$", 0.2),
    (r"(use_mambapy|use_mamba_kernels|use_cache|output_router_logits)$", False),
    (r"(tie_word_embeddings)$", False),
    (r"(is_decoder)$", True),
    (r"(num_query_tokens|mm_tokens_per_image)$", 4),
    (r"(lru_width)$", 64),
]  # fmt: skip
"""What sizes are set to where a configuration has them, by the end of their names; the first that matches counts."""

SPECIAL: dict[str, dict[str, Any]] = {
    "falcon": {"ffn_hidden_size": 128},
    "mamba2": {"num_heads": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "hunyuan_v1_moe": {"moe_topk": 2, "num_shared_expert": 1},
    "jetmoe": {"kv_channels": 16, "num_key_value_heads": 2},
    "reformer": {"attn_layers": ["local", "local"], "axial_pos_embds": False},
}
"""What cannot be guessed, by model type."""


def model_types() -> list[str]:
    """Every model type of a causal language model, or of one of images and text."""
    return sorted({*CAUSAL, *IMAGE_TEXT})


def tiny_config(model_type: str) -> Any:
    """A configuration of two layers. Raises whatever the class does where the sizes do not fit each other."""
    cls = transformers.CONFIG_MAPPING[model_type]
    if model_type == "gpt_neo":
        return cls(**{**_of(cls), "attention_types": [[["global", "local"], 1]]})
    return cls(**{**_of(cls), **SPECIAL.get(model_type, {})})


def tiny_model(model_type: str) -> Any:
    """A random bfloat16 model of the class that checkpoints of this type have, in evaluation mode."""
    torch.manual_seed(0)
    config = tiny_config(model_type)
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


def _of(cls: Any) -> dict[str, Any]:
    """The settings of a configuration class that differ from its own defaults."""
    base = cls()
    named = set(base.to_dict()) | set(inspect.signature(cls.__init__).parameters)
    settings: dict[str, Any] = {}
    for name in sorted(named):
        size = next((value for pattern, value in _SIZES if re.search(rf"(^|_)({pattern})", name)), None)
        own = getattr(base, name, None)
        if name in getattr(cls, "sub_configs", {}):
            settings[name] = _part(own)
        elif size is not None and isinstance(own, list):
            settings[name] = [size] * LAYERS
        elif size is not None and (own is not None or not isinstance(size, bool)) and not isinstance(own, dict | str):
            settings[name] = size if own is not None else None
        elif isinstance(own, list) and name.endswith(
            ("layer_types", "layers_block_type", "block_types", "mlp_layer_types")
        ):
            settings[name] = _kinds(own)
    for name, value in list(settings.items()):
        if value is None:
            del settings[name]
    return settings


def _part(config: Any) -> Any:
    """A part of a configuration, such as that of a vision tower, as settings."""
    if config is None:
        return None
    return {**_of(type(config)), "model_type": config.model_type} if config.model_type else _of(type(config))


def _kinds(own: list[Any]) -> list[Any]:
    """One layer of each kind, two in all."""
    kinds = list(dict.fromkeys(own))
    return (kinds * LAYERS)[:LAYERS]
