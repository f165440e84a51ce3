"""Experts: every expert's Linear is held against the tokens of its own expert."""

from __future__ import annotations

from pathlib import Path

from quantaudit.card.build import build_card
from quantaudit.conform.card_inputs import input_sites
from quantaudit.measure.run import measure
from quantaudit.policy import load_policy
from quantaudit.simulate.tensors import scale_rows
from tests.artifacts import compare
from tests.builders import load, random_corpus, save_checkpoint
from tests.families import family_model
from tests.llm_compressor import W8A8, quantized_checkpoint


def test_an_artifact_with_experts(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "m", family_model("qwen3-moe").float())
    corpus = random_corpus([60, 50, 50, 40, 40, 40, 30, 30])
    loaded = load(folder)
    loaded.model.set_attn_implementation("eager")
    profile = measure(loaded, corpus)
    card = build_card(profile, scale_rows(profile), None, load_policy(), timings={})
    recipe = W8A8.replace("ignore: [lm_head]", "ignore: [lm_head, 're:.*mlp.gate$']")
    # llm-compressor 0.14's sequential pipeline loses this architecture's causal mask, and with it the activations.
    path = quantized_checkpoint(folder, tmp_path / "q", recipe, list(corpus.samples), pipeline="basic")
    result = compare(path, card)
    sites = input_sites(card)
    experts = [row for row in result.ranges if ".experts." in row.module]
    assert experts
    for row in experts:
        number = row.module.split(".")[-2]
        assert row.site is not None
        assert f".experts.{number}." in row.site
        assert sites[row.module].name == row.site
        # llm-compressor calibrates every expert on all tokens: its ranges hold at least what was routed there.
        assert row.coverage is not None
        assert row.coverage > 1 - 1e-5
