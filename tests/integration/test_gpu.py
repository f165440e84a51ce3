"""The same numbers on an accelerator: counts exactly, magnitudes as far as its arithmetic agrees with the CPU's."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import pytest
import torch

from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.blockwise.memory import size_text
from quantaudit.model.forward.batches import BatchLimit, batches, forward, last_logit_only
from quantaudit.model.loading.checkpoint import locate
from quantaudit.model.loading.load import load_model
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC
from quantaudit.simulate.run import simulate
from tests.builders import random_corpus, save_checkpoint, tiny_model
from tests.device_walk import RECIPE, check_by_block, check_report, check_verbs, main, save_text
from tests.families import FAMILIES, family_model

CUDA = torch.device("cuda", 0)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_measuring_and_simulating_on_a_gpu_agree_with_the_cpu(
    tiny_folder: Path, tiny_corpus: TokenizedCorpus, tiny_profile: Profile
) -> None:
    loaded = load_model(locate(str(tiny_folder)), device=torch.device("cuda"))
    profile = measure(loaded, tiny_corpus)
    for site in tiny_profile.sites:
        here, there = profile.whole(site.name), tiny_profile.whole(site.name)
        assert here is not None
        assert there is not None
        assert here.tokens == there.tokens
        assert here.distribution.counts.sum() == there.distribution.counts.sum()
        assert here.channel_amax == pytest.approx(there.channel_amax, rel=0.05, abs=0.05)
    simulation = simulate(loaded, profile, tiny_corpus.samples, [INT8_STATIC, INT8_DYNAMIC], evaluation_tokens=256)
    assert all(row.kl is not None and row.kl >= 0 for row in simulation.recipes)
    assert all(row.damage is not None for row in simulation.groups if row.layer is not None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_report_of_any_family_runs_on_a_gpu(family: str, tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "model", family_model(family))
    card = check_report(folder, save_text(tmp_path), CUDA)
    assert card.environment.device == torch.cuda.get_device_name(CUDA)


@pytest.mark.parametrize("family", ["qwen3", "qwen3-moe", "gemma3"])
def test_block_by_block_it_is_the_same_on_a_gpu(family: str, tmp_path: Path) -> None:
    check_by_block(save_checkpoint(tmp_path / "model", family_model(family)), CUDA)


def test_every_verb_runs_on_a_gpu(tmp_path: Path) -> None:
    folder, text = save_checkpoint(tmp_path / "model", tiny_model("llama")), save_text(tmp_path)
    card = check_verbs(folder, text, tmp_path, CUDA, torch.cuda.get_device_name(CUDA))
    assert main("verify", RECIPE, folder, "--card", card, "--corpus", text, "--device", CUDA) == 0


@pytest.mark.checkpoint
def test_what_measuring_costs_on_a_gpu_is_printed() -> None:
    """Seconds of a pass with every site tapped, over those of a bare one, and the peak of memory of each."""
    loaded, corpus = load_model(locate("demo"), device=CUDA), random_corpus([512] * 16)

    def bare() -> None:
        with torch.no_grad(), last_logit_only(loaded.model):
            for batch in batches(corpus.samples, BatchLimit(8), device=CUDA):
                forward(loaded.model, batch)

    took = {}
    for name, work in (("bare", bare), ("measured", lambda: measure(loaded, corpus, batch=BatchLimit(8)))):
        work()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = perf_counter()
        work()
        torch.cuda.synchronize()
        took[name] = perf_counter() - start, torch.cuda.max_memory_allocated()
    ratio = took["measured"][0] / took["bare"][0]
    peaks = ", ".join(f"{name} {size_text(peak)}" for name, (_, peak) in took.items())
    print(f"{torch.cuda.get_device_name(CUDA)}: measuring {ratio:.2f} times a bare forward; peaks {peaks}")
    assert ratio > 0
