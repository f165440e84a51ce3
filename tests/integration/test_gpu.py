"""The same numbers on an accelerator: counts exactly, magnitudes as far as its arithmetic agrees with the CPU's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.loading.checkpoint import locate
from quantaudit.model.loading.load import load_model
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC
from quantaudit.simulate.run import simulate

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
