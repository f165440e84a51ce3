"""Tiny random models of every family that the package promises to measure, and one of a remote-code layout."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from tests.builders import BYTES, PAD, VOCABULARY

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": BYTES + 1,
    "eos_token_id": BYTES + 2,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
_HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_GEMMA = {"query_pre_attn_scalar": 16, "sliding_window": 16}
_GEMMA4 = {
    "global_head_dim": 16,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 16,
    "num_kv_shared_layers": 0,
}
_MLA = {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 2,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2.5": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "qwen3-moe": ("Qwen3MoeConfig", _MOE),
    "qwen3.5": ("Qwen3_5TextConfig", _HYBRID),
    "qwen3.5-moe": ("Qwen3_5MoeTextConfig", {**_HYBRID, **_MOE, "shared_expert_intermediate_size": 32}),
    "gemma1": ("GemmaConfig", {}),
    "gemma2": ("Gemma2Config", _GEMMA),
    "gemma3": ("Gemma3TextConfig", _GEMMA),
    "gemma4": ("Gemma4TextConfig", _GEMMA4),
    "gemma4-moe": (
        "Gemma4TextConfig",
        {
            **_GEMMA4,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
    ),
    "gpt-oss": ("GptOssConfig", {**_LOCAL, "sliding_window": 16}),
    "llama4": (
        "Llama4TextConfig",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 96,
            "interleave_moe_layer_step": 2,
        },
    ),
    "deepseek-v3": ("DeepseekV3Config", _MLA),
    "mixtral": ("MixtralConfig", _LOCAL),
    "phi3": ("Phi3Config", {}),
    "glm4": ("Glm4Config", {}),
    "olmo2": ("Olmo2Config", {}),
    "falcon": ("FalconConfig", {"ffn_hidden_size": 128, "head_dim": None}),
    "gpt2": ("GPT2Config", {}),
    "opt": ("OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 64, "intermediate_size": None}),
    "bloom": ("BloomConfig", {}),
    "mamba2": ("Mamba2Config", {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1, "chunk_size": 16}),
}
"""Family → transformers configuration class, and what it needs in addition to the common sizes (None: not that one)."""


def family_config(name: str, **overrides: Any) -> transformers.PretrainedConfig:
    """A configuration of two layers."""
    cls, extra = FAMILIES[name]
    settings = {key: value for key, value in {**_SIZES, **extra, **overrides}.items() if value is not None}
    return getattr(transformers, cls)(**settings)


def family_model(name: str, **overrides: Any) -> Any:
    """A random bfloat16 model in evaluation mode, as transformers builds it."""
    torch.manual_seed(0)
    if name == "ling":
        return LingForCausalLM(LingConfig()).to(torch.bfloat16).eval()
    model = transformers.AutoModelForCausalLM.from_config(family_config(name, **overrides)).to(torch.bfloat16).eval()
    with torch.no_grad():
        for module in model.modules():  # initialized to zero or not at all
            for parameter in module.parameters(recurse=False):
                if parameter.ndim >= 2 and (not parameter.any() or not parameter.isfinite().all()):
                    parameter.normal_(std=0.2)
                elif not parameter.isfinite().all() or parameter.abs().max() > 1e3:
                    parameter.zero_()
    return model


# The layout of BailingMoe, whose code comes with its checkpoints ------------------------------------------------------


class LingConfig(transformers.PretrainedConfig):
    model_type = "ling_like"

    def __init__(self, **kwargs: Any) -> None:
        self.hidden_size = 64
        self.num_hidden_layers = 2
        self.num_experts = 4
        self.num_experts_per_tok = 2
        self.moe_intermediate_size = 32
        super().__init__(vocab_size=VOCABULARY, tie_word_embeddings=False, **kwargs)


class LingMLP(nn.Module):
    def __init__(self, config: LingConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.moe_intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.moe_intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.moe_intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class LingGate(nn.Module):
    def __init__(self, config: LingConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.randn(config.num_experts, config.hidden_size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = functional.linear(x, self.weight)
        weight, index = logits.float().softmax(-1).topk(self.top_k, dim=-1, sorted=False)
        return index, weight.to(x.dtype), logits


class LingMoe(nn.Module):
    def __init__(self, config: LingConfig) -> None:
        super().__init__()
        self.experts = nn.ModuleList(LingMLP(config) for _ in range(config.num_experts))
        self.gate = LingGate(config)
        self.shared_experts = LingMLP(config)

    def forward(self, hidden: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x = hidden.view(-1, hidden.shape[-1])
        index, weight, logits = self.gate(x)
        # As BailingMoe's moe_infer: tokens sorted by expert, in whatever order the sort leaves them.
        order = index.view(-1).argsort(descending=False)
        sorted_x, outputs, start = x[order // index.shape[1]], [], 0
        for expert, amount in zip(self.experts, index.flatten().bincount(minlength=len(self.experts)), strict=True):
            if amount:
                outputs.append(expert(sorted_x[start : start + amount]))
                start += int(amount)
        restored = torch.empty_like(sorted_x)
        restored[order] = torch.cat(outputs)
        mixed = (restored.view(*index.shape, -1) * weight[..., None]).sum(1)
        return (mixed + self.shared_experts(x)).view(hidden.shape), (logits, index)


class LingAttention(nn.Module):
    def __init__(self, config: LingConfig) -> None:
        super().__init__()
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        q, k, v = (
            part.unflatten(-1, (4, 16)).transpose(1, 2) for part in self.query_key_value(hidden_states).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.dense(mixed.transpose(1, 2).flatten(2)), None


class LingLayer(nn.Module):
    def __init__(self, config: LingConfig) -> None:
        super().__init__()
        self.attention = LingAttention(config)
        self.mlp = LingMoe(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size)

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        hidden = hidden + self.attention(self.input_layernorm(hidden))[0]
        return (hidden + self.mlp(self.post_attention_layernorm(hidden))[0],)


class LingModel(nn.Module):
    def __init__(self, config: LingConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(LingLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size)


class LingForCausalLM(transformers.PreTrainedModel):
    config_class = LingConfig

    def __init__(self, config: LingConfig) -> None:
        super().__init__(config)
        self.model = LingModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.word_embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        hidden = self.model.word_embeddings(input_ids)
        for layer in self.model.layers:
            (hidden,) = layer(hidden)
        return SimpleNamespace(logits=self.lm_head(self.model.norm(hidden)))
