"""A folder in which the commands of the documentation run as written: small things under the names that they use."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from quantaudit import cli
from tests.builders import save_checkpoint, tiny_model, tiny_tokenizer
from tests.docs.pages import ROOT
from tests.llm_compressor import DYNAMIC, quantized_checkpoint

MODELS = ("MODEL", "my-checkpoint", "Qwen/Qwen2.5-1.5B-Instruct")
CORPORA = ("my-text.jsonl", "mine.jsonl")
RECIPES = ("recipe.yaml", "my-recipe.yaml", "R.yaml", "advised.yaml")
ARTIFACTS = ("CHECKPOINT", "Llama-3.2-1B-W8A8")
SMALL = {"--samples": "8", "--max-length": "48", "--evaluation-tokens": "64", "--schemes": "int8"}
"""What every command is given in addition to what it says, where its verb has the option."""


def quantaudit(*arguments: object) -> int:
    """The exit code of a command line, run in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quantaudit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return int(stop.value.code or 0)


def build(folder: Path) -> Path:
    """Everything that the commands name, in `folder`."""
    model = save_checkpoint(folder / MODELS[0], tiny_model("llama"))
    for name in MODELS[1:]:
        shutil.copytree(model, folder / name)
    for name in CORPORA:
        (folder / name).write_text("".join(map(_row, range(8))), encoding="utf-8")
    for name in RECIPES:
        shutil.copy(ROOT / "recipes/w8a8_dynamic.yaml", folder / name)
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "my-templates").mkdir()
    (folder / "README.md").write_text("# Model\n", encoding="utf-8")
    _audit(folder, model)
    _quantize(folder, model)
    return folder


def _row(number: int) -> str:
    text = f"Sample {number}: {'words, ' * (number + 4)}end."
    return json.dumps({"id": f"s{number}", "domain": "ab"[number % 2], "text": text}) + "\n"


def _audit(folder: Path, model: Path) -> None:
    """A card and its profile, with their shards, and a simulation."""
    card = folder / "quantaudit-demo"
    corpus = folder / CORPORA[0]
    small = ["--max-length", SMALL["--max-length"]]
    budget = ["--evaluation-tokens", SMALL["--evaluation-tokens"]]
    samples = ["--samples", SMALL["--samples"]]
    assert quantaudit("report", model, *samples, *small, *budget, "--out", card) == 0
    shutil.copy(card / "card.json", folder / "card.json")
    for name in ("P", "profile.safetensors"):
        shutil.copy(card / "profile.safetensors", folder / name)
    for part, name in enumerate(("a.safetensors", "b.safetensors"), start=1):
        shard = ["--shard", f"{part}/2"]
        assert quantaudit("measure", model, "--corpus", corpus, *small, *shard, "--out", folder / name) == 0
        shutil.copy(folder / name, folder / f"part-{part}.safetensors")
    arguments = ["--profile", folder / "P", "--recipe", folder / "R.yaml", *budget, "--out", folder / "S.json"]
    assert quantaudit("simulate", model, *arguments) == 0


def _quantize(folder: Path, model: Path) -> None:
    """The model as llm-compressor saves it under INT8 with dynamic scales, which need no samples."""
    artifact = quantized_checkpoint(model, folder / ARTIFACTS[0], DYNAMIC, [])
    tiny_tokenizer().save_pretrained(artifact)
    for name in ARTIFACTS[1:]:
        shutil.copytree(artifact, folder / name)
