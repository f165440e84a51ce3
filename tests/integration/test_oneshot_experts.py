"""Static scales of experts are those that llm-compressor's `oneshot` saves, which calibrates them on all tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader

from quantaudit.common.choices import Experts
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.measure.run import measure
from quantaudit.model.experts import linearize
from quantaudit.quant.export import save_scales
from tests.builders import load, random_corpus, save_checkpoint, tiny_tokenizer
from tests.families import family_model

RECIPE = """
quant_stage:
  quant_modifiers:
    QuantizationModifier:
      ignore: [lm_head, "re:.*router$", "re:.*mlp.gate$"]
      config_groups:
        group_0:
          targets: [Linear]
          weights: {num_bits: 8, type: int, symmetric: true, strategy: channel}
          input_activations:
            {num_bits: 8, type: int, symmetric: true, strategy: tensor, dynamic: false, observer: static_minmax}
"""


@pytest.fixture(scope="module")
def corpus() -> TokenizedCorpus:
    return random_corpus([40, 33, 33, 29, 24, 20])


@pytest.fixture(scope="module", params=["qwen3-moe", "mixtral", "gpt-oss", "llama4"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("m"), family_model(name).float())


@pytest.fixture(scope="module")
def saved(name: str, folder: Path, corpus: TokenizedCorpus) -> dict[str, Tensor]:
    """Input scales of every Linear of an expert, by llm-compressor, from the calibration split, sample by sample."""
    from llmcompressor import oneshot

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    if name == "llama4":  # llm-compressor looks for its experts in a larger model only
        linearize(model)
    rows = [{"input_ids": torch.from_numpy(s.ids)[None]} for s in corpus.samples if s.split == "calibration"]
    loader = DataLoader(rows, batch_size=None)  # type: ignore[arg-type]
    oneshot(model=model, processor=tiny_tokenizer(), dataset=loader, recipe=RECIPE, pipeline="basic")
    return {
        f"{name}.input_scale": module.input_scale.detach()
        for name, module in model.named_modules()
        if ".experts." in name and hasattr(module, "input_scale")
    }


def ours(folder: Path, corpus: TokenizedCorpus, path: Path, experts: Experts) -> dict[str, Tensor]:
    save_scales(measure(load(folder), corpus, experts=experts), path)
    return {name: scale for name, scale in load_file(path).items() if ".experts." in name}


def test_scales_over_all_tokens_are_oneshots(
    folder: Path, corpus: TokenizedCorpus, saved: dict[str, Tensor], tmp_path: Path
) -> None:
    found = ours(folder, corpus, tmp_path / "s.safetensors", "all")
    assert found.keys() == saved.keys()
    assert len(found) >= 12
    for name, scale in saved.items():
        assert float(found[name]) == pytest.approx(float(scale), rel=1e-5), name


def test_scales_over_routed_tokens_are_narrower_behind_the_gate_alone(
    folder: Path, corpus: TokenizedCorpus, saved: dict[str, Tensor], tmp_path: Path
) -> None:
    """The experts of a layer together see all its tokens, so the range of what they read is known all the same."""
    found = ours(folder, corpus, tmp_path / "s.safetensors", "routed")
    ratios = {name: float(scale / saved[name]) for name, scale in found.items()}
    behind = [ratio for name, ratio in ratios.items() if "down_proj" in name]
    assert all(ratio == pytest.approx(1, rel=1e-5) for name, ratio in ratios.items() if "down_proj" not in name)
    assert all(ratio <= 1 + 1e-5 for ratio in behind)
    assert sum(ratio < 0.99 for ratio in behind) >= len(behind) // 4
