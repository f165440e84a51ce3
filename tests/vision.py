"""Tiny random vision-language models with tokenizer, chat template and image processor, saved as checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import AddedToken
from transformers import Gemma3ImageProcessorPil, PreTrainedTokenizerFast, Qwen2VLImageProcessorPil

from tests.builders import save_checkpoint, tiny_tokenizer

VOCABULARY = 264
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 256,
    "bos_token_id": 257, "eos_token_id": 258, "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
QWEN_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
GEMMA_TOKENS = ("<image_soft_token>", "<start_of_image>", "<end_of_image>")
TEMPLATE = (
    "{{% for m in messages %}}[{{{{ m.role }}}}]{{% if m.content is string %}}{{{{ m.content }}}}{{% else %}}"
    "{{% for part in m.content %}}{{% if part.type == 'image' %}}{image}{{% else %}}{{{{ part.text }}}}{{% endif %}}"
    "{{% endfor %}}{{% endif %}}{{% endfor %}}"
)


def qwen() -> Any:
    """Qwen2.5-VL: windowed attention over patches, merged two by two."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    vision = {
        "depth": 3, "hidden_size": 128, "intermediate_size": 512, "num_heads": 4, "out_hidden_size": 64,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, tie_word_embeddings=False,
        image_token_id=260, video_token_id=261, vision_start_token_id=262, vision_end_token_id=263,
        bos_token_id=257, eos_token_id=258,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16).eval()


def gemma() -> Any:
    """Gemma 3: a SigLIP tower, and a projector whose weight is a bare parameter."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 56, "patch_size": 14, "vision_use_head": False,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config={**TEXT, "query_pre_attn_scalar": 16}, vision_config=vision, mm_tokens_per_image=4,
        image_token_index=260, boi_token_index=261, eoi_token_index=262,
    )  # fmt: skip
    model = transformers.Gemma3ForConditionalGeneration(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.1)  # zero as it is built
    return model


def save_qwen(folder: Path, model: Any = None, *, template: bool = True) -> Path:
    """A Qwen2.5-VL checkpoint."""
    tokenizer = tiny_tokenizer(chat_template=False)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in QWEN_TOKENS], special_tokens=True)
    if template:
        tokenizer.chat_template = TEMPLATE.format(image="<|vision_start|><|image_pad|><|vision_end|>")
    save_checkpoint(folder, model or qwen(), tokenizer)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28 * 2, "longest_edge": 28 * 28 * 12}).save_pretrained(folder)
    return folder


def save_gemma(folder: Path, model: Any = None, *, template: bool = True) -> Path:
    """A Gemma 3 checkpoint."""
    base = tiny_tokenizer(chat_template=False)
    base.add_tokens([AddedToken(token, special=True) for token in GEMMA_TOKENS], special_tokens=True)
    names = dict(zip(("image_token", "boi_token", "eoi_token"), GEMMA_TOKENS, strict=True))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base.backend_tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", extra_special_tokens=names,
    )  # fmt: skip
    if template:
        tokenizer.chat_template = TEMPLATE.format(image="<start_of_image>")
    save_checkpoint(folder, model or gemma(), tokenizer)
    Gemma3ImageProcessorPil(size={"height": 56, "width": 56}).save_pretrained(folder)
    (folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "Gemma3Processor", "image_seq_length": 4})
    )
    return folder


SAVE: dict[str, Callable[..., Path]] = {"qwen": save_qwen, "gemma": save_gemma}
MODEL: dict[str, Callable[[], Any]] = {"qwen": qwen, "gemma": gemma}


def save_image(path: Path, seed: int, *, width: int = 90, height: int = 60) -> Path:
    """An image of noise."""
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def save_corpus(folder: Path) -> Path:
    """Twelve rows: images next to text, a chat of two images of other shapes, and text alone, in both splits."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(8):
        save_image(folder / f"{seed}.png", seed, width=60 + 30 * (seed % 3), height=60 + 30 * (seed % 2))
    rows: list[dict[str, Any]] = []
    for i, split in enumerate(["calibration", "evaluation"] * 3):
        rows.append({"image": f"{i}.png", "text": f"What is in picture {i}?", "split": split, "domain": "images"})
        rows.append({"text": f"Some words, number {i}, without any picture.", "split": split, "domain": "text"})
    parts = [
        {"type": "text", "text": "Compare"},
        {"type": "image", "image": "6.png"},
        {"type": "image", "path": "7.png"},
    ]
    rows[4] = {"messages": [{"role": "user", "content": parts}], "split": "calibration", "domain": "images"}
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
