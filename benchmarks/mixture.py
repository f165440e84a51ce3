"""Save the demo, or another Llama, as a mixture of experts of which everything is known: for benchmarks on mixtures.

Each MLP becomes four experts behind a random router that takes two: copies with 5 % of noise, whose intermediate
channels are rescaled, which changes no output but what quantization costs; in every seventh expert three channels stand
out twentyfold. What it says stays sensible text.

    python benchmarks/mixture.py OUT [MODEL] [--seed N]
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM

from quantaudit.pipeline.prepare import prepare
from quantaudit.settings import Settings

EXPERTS, CHOSEN = 4, 2
NOISE, SPREAD, ROUTER = 0.05, 0.4, 0.05
"""Relative noise of weights, standard deviations of the logarithm of a channel's scale, and of a router's weights."""
EVERY, CHANNELS, TIMES = 7, 3, 20.0
"""Which experts have channels that stand out, how many, and by how much."""
SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)


@torch.no_grad()
def main(out: Path, model: Annotated[str, typer.Argument()] = "demo", seed: int = 1) -> None:
    """Save it in bfloat16, with its tokenizer."""
    loaded = prepare(Settings.of(model=model, samples=2, dtype="float32")).loaded
    dense: Any = loaded.model
    config = MixtralConfig(
        **{name: getattr(dense.config, name) for name in SAME},
        num_local_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        sliding_window=None,
    )
    torch.manual_seed(seed)
    mixture: Any = MixtralForCausalLM(config).float()
    mixture.load_state_dict(dense.state_dict(), strict=False)
    for number, layer in enumerate(mixture.model.layers):
        for expert in range(EXPERTS):
            stands_out = (number + expert) % EVERY == 0
            gate_up, down = expert_weights(dense.model.layers[number].mlp, stands_out)
            layer.mlp.experts.gate_up_proj[expert].copy_(gate_up)
            layer.mlp.experts.down_proj[expert].copy_(down)
        layer.mlp.gate.weight.normal_(0, ROUTER)
    mixture.to(torch.bfloat16).save_pretrained(out)
    loaded.tokenizer.save_pretrained(out)


def expert_weights(mlp: Any, stands_out: bool) -> tuple[Tensor, Tensor]:
    """Weights of one expert, [2 · intermediate, hidden] and [hidden, intermediate]."""
    scale = torch.exp(SPREAD * torch.randn(mlp.up_proj.weight.shape[0]))
    if stands_out:
        scale[torch.randint(len(scale), (CHANNELS,))] *= TIMES
    gate, up, down = noisy(mlp.gate_proj), noisy(mlp.up_proj), noisy(mlp.down_proj)
    return torch.cat([gate, up * scale[:, None]]), down / scale[None]


def noisy(linear: nn.Linear) -> Tensor:
    """Its weights with noise."""
    return linear.weight * (1 + NOISE * torch.randn_like(linear.weight))


if __name__ == "__main__":
    typer.run(main)
