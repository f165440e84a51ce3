"""Tiny models that have learned something: controls that a sound audit must pass, made in seconds.

The language has 48 words; each is followed by one of three, usually by the same one. A model that has learned it is
sure of its predictions, as a trained model is and a random one never can be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from tests.builders import save_checkpoint

WORDS = tuple(a + b + c for a in "bdkm" for b in "aeio" for c in "lns")
RARE = "xyzzy"
"""A word that the language lacks: what is wrong with it alone shows in the one text that has it."""
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VOCABULARY = (*WORDS, RARE, *SPECIAL)
PAD = VOCABULARY.index("<pad>")
CHANCES = (0.85, 0.1, 0.05)
LAG = 3
"""How many words back the word lies that decides the next one in the lagged language."""
SURE = (0.96, 0.03, 0.01)
"""Chances in the lagged language: a model that looks at the wrong word is sure of the wrong answer."""
FOLLOW = np.stack([np.random.default_rng(word).permutation(len(WORDS))[: len(CHANCES)] for word in range(len(WORDS))])
"""For each word the three that may follow it, by falling chance."""
STEPS = {"dense": 100, "moe": 100, "lagged": 250}

_SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": PAD,
    "bos_token_id": PAD + 1,
    "eos_token_id": PAD + 2,
}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("LlamaConfig", {"intermediate_size": 128}),
    # The lagged language: without attention to exact places, nothing is predicted.
    "lagged": ("LlamaConfig", {"intermediate_size": 128}),
    # Routers with a bias, so that one number makes an expert dead; trained to use all of them.
    "moe": (
        "GptOssConfig",
        {
            "intermediate_size": 64,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "output_router_logits": True,
            "router_aux_loss_coef": 0.02,
            "sliding_window": 32,
        },
    ),
}


def sentence(length: int, rng: np.random.Generator, *, lagged: bool = False) -> list[int]:
    """Token ids of a text in the language, or in the lagged one."""
    lag, chances = (LAG, SURE) if lagged else (1, CHANCES)
    ids = [int(word) for word in rng.integers(len(WORDS), size=lag)]
    while len(ids) < length:
        ids.append(int(FOLLOW[ids[-lag], rng.choice(len(chances), p=chances)]))
    return ids


def words(ids: list[int]) -> str:
    """The text that these tokens spell."""
    return " ".join(VOCABULARY[i] for i in ids)


def word_tokenizer(vocabulary: tuple[str, ...] = VOCABULARY) -> PreTrainedTokenizerFast:
    """One token a word, numbered as listed."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def train(kind: str, seed: int = 0) -> Any:
    """A model of this kind that has learned the language, in bfloat16 and in evaluation mode."""
    cls, extra = _CONFIGS[kind]
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = getattr(transformers, cls)(**_SIZES, **extra)
    model = transformers.AutoModelForCausalLM.from_config(config).float().train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=STEPS[kind])
    for _ in range(STEPS[kind]):
        ids = torch.tensor([sentence(32, rng, lagged=kind == "lagged") for _ in range(16)])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.config.output_router_logits = False
    return model.to(torch.bfloat16).eval()


def learned_checkpoint(folder: Path, kind: str) -> Path:
    """A trained model with its tokenizer, saved."""
    return save_checkpoint(folder, train(kind), word_tokenizer())


def corpus_rows(
    count: int = 24, seed: int = 1, *, lagged: bool = False, calibration: int | None = None
) -> list[dict[str, Any]]:
    """Texts that the models were not trained on, two thirds of them for calibration; one has the rare word.

    calibration: how many of the texts for calibration are left, where fewer do.
    """
    rng = np.random.default_rng(seed)
    rows = [
        {
            "text": words(sentence(int(rng.integers(20, 60)), rng, lagged=lagged)),
            "domain": "ab"[k % 2],
            "split": "evaluation" if k % 3 == 2 else "calibration",
        }
        for k in range(count)
    ]
    rows[0]["text"] += f" {RARE}"
    kept = [row for row in rows if row["split"] == "calibration"][:calibration]
    return [row for row in rows if row["split"] == "evaluation" or row in kept]


def write_corpus(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
