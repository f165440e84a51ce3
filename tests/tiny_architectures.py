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

_SIZES: tuple[tuple[str, Any], ...] = (
    ("vocab_size vocab_size_per_layer_input num_embeddings", VOCABULARY),
    ("pad_token_id pad_id", PAD),
    ("bos_token_id", BYTES + 1),
    ("eos_token_id sep_token_id cls_token_id", BYTES + 2),
    ("image_token_id image_token_index video_token_id video_token_index audio_token_id", IMAGE),
    ("mamba_num_heads mamba_n_heads n_mamba_heads", 8),
    ("mamba_head_dim mamba_headdim mamba_d_head", 16),
    ("num_key_value_heads num_kv_heads n_kv_heads multi_query_group_num num_global_key_value_heads", 2),
    ("num_attention_heads n_head n_heads num_heads attention_heads num_q_heads", 4),
    ("linear_num_key_heads", 2),
    ("linear_num_value_heads", 4),
    ("head_dim linear_key_head_dim linear_value_head_dim d_kv global_head_dim kv_channels swa_head_dim", 16),
    ("rotary_dim qk_rope_head_dim", 8),
    ("qk_nope_head_dim v_head_dim kv_lora_rank", 16),
    ("q_lora_rank", 32),
    ("hidden_size d_model n_embd embed_dim embedding_size word_embed_proj_dim dim hidden_dim output_dim n_embed "
     "attention_hidden_size projection_dim mm_hidden_size lru_width", 64),
    ("moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size expert_dim "
     "moe_shared_expert_intermediate_size", 32),
    ("intermediate_size intermediate_size_mlp ffn_dim n_inner d_ff ffn_hidden_size inner_dim mlp_dim block_ff_dim "
     "mlp_hidden_size", 128),
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

_MLA = {"num_key_value_heads": 4, "head_dim": 8}
_LOCAL_HEADS = {"num_key_value_heads": 4}
SPECIAL: dict[str, dict[str, Any]] = {
    "falcon": {"ffn_hidden_size": 128},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "hunyuan_v1_moe": {"moe_topk": 2, "num_shared_expert": 1, "moe_intermediate_size": 128, "head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "zamba": {"attention_hidden_size": 128, "attention_head_dim": 32},
    "reformer": {"attn_layers": ["local", "local"], "axial_pos_embds": False},
    "deepseek_v2": _MLA, "deepseek_v3": _MLA, "deepseek_v32": _MLA, "glm4_moe_lite": _MLA, "glm_moe_dsa": _MLA,
    "axk1": _MLA, "axk2": _MLA, "minicpm3": _MLA, "kimi_linear": _MLA, "longcat_flash": _MLA, "youtu": _MLA,
    "glm5_next": _LOCAL_HEADS,
}  # fmt: skip
"""What cannot be guessed, by model type."""


def model_types() -> list[str]:
    """Every model type of a causal language model, or of one of images and text."""
    return sorted({*CAUSAL, *IMAGE_TEXT})


def tiny_config(model_type: str) -> Any:
    """A configuration of two layers. Raises whatever the class does where the sizes do not fit each other."""
    return transformers.CONFIG_MAPPING[model_type](**_of(transformers.CONFIG_MAPPING[model_type], model_type))


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


def _of(cls: Any, model_type: str) -> dict[str, Any]:
    """The settings of a configuration class that differ from its own defaults."""
    base = cls()
    settings: dict[str, Any] = {}
    for name in sorted(set(base.to_dict()) | set(inspect.signature(cls.__init__).parameters)):
        try:
            own = getattr(base, name, None)
        except Exception:  # one value for each layer
            continue
        if name in getattr(cls, "sub_configs", {}):
            if own is not None:
                settings[name] = {**_of(type(own), own.model_type), "model_type": own.model_type}
        elif name in ("rope_parameters", "rope_scaling") and isinstance(own, dict):
            settings[name] = _rope(own)
        elif isinstance(own, list) and name.endswith(("layer_types", "layers_block_type", "block_types")):
            settings[name] = (list(dict.fromkeys(own)) * LAYERS)[:LAYERS]
        elif (size := _size(name)) is not None and own is not None and isinstance(own, bool) == isinstance(size, bool):
            if isinstance(own, list) and not isinstance(size, list):
                settings[name] = [size] * LAYERS
            elif isinstance(own, int | float | list):
                settings[name] = size
    return settings | SPECIAL.get(model_type, {})


def _rope(own: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings, of all layers or of each kind of them, with sections that fit the head."""
    return {
        name: _rope(value) if isinstance(value, dict) else value if (size := _size(name)) is None else size
        for name, value in own.items()
    }


def _size(name: str) -> Any:
    fits = (size for names, size in _SIZES if any(re.search(rf"(^|_){end}$", name) for end in names.split()))
    return next(fits, None)
