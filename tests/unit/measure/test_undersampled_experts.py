"""Experts that saw too few tokens are listed again whenever profiles are added up."""

from __future__ import annotations

import numpy as np
import torch

from quantaudit.measure.profile import Profile, merge, undersampled_experts
from quantaudit.provenance import SampleInfo
from tests.builders import accumulate, provenance, site_info

SITE = site_info("layers.0.mlp.experts.1.down_proj.input", kind="expert_input", members=["m.experts.1.down_proj"])
SAMPLES = [SampleInfo(id=str(i), domain="a", split="calibration", tokens=20) for i in range(2)]


def shard(sample: int, tokens: int) -> Profile:
    built = accumulate([(sample, torch.ones(tokens, 2), np.zeros(tokens, np.int64))])
    profile = Profile(provenance=provenance([SITE], SAMPLES), statistics={(SITE.name, "calibration"): built})
    return Profile(
        provenance=profile.provenance.model_copy(update={"unmeasured": undersampled_experts(profile)}),
        statistics=profile.statistics,
    )


def test_shards_that_saw_enough_together_are_measured() -> None:
    a, b = shard(0, 9), shard(1, 7)
    assert [row.reason for row in a.provenance.unmeasured] == ["expert saw 9 tokens, fewer than 16"]
    assert merge(a, b).provenance.unmeasured == []


def test_shards_that_saw_too_few_together_stay_unmeasured() -> None:
    for first, second in ((9, 6), (7, 7)):
        rows = merge(shard(0, first), shard(1, second)).provenance.unmeasured
        assert [(row.module, row.weights) for row in rows] == [("m.experts.1.down_proj", True)]
        assert rows[0].reason == f"expert saw {first + second} tokens, fewer than 16"


def expert(*, behind: str | None, over_all: int) -> list[str]:
    """Undersampled modules of an expert that saw 3 routed tokens; `behind`: where its down_proj's input over all is."""
    stem = "layers.0.mlp.experts"
    sites = [
        site_info(f"{stem}.up_proj.input"),
        site_info(f"{stem}.1.up_proj.input", kind="expert_input", module="m.experts.1.up_proj",
                  members=["m.experts.1.up_proj"], all_tokens=f"{stem}.up_proj.input"),
        site_info(f"{stem}.1.down_proj.input", kind="expert_input", module="m.experts.1.down_proj",
                  members=["m.experts.1.down_proj"], all_tokens=behind),
    ]  # fmt: skip
    seen = {site.name: 3 for site in sites[1:]} | {sites[0].name: over_all}
    if behind:
        sites.append(site_info(behind, kind="expert_input_all"))
        seen[behind] = over_all
    statistics = {
        (name, "calibration"): accumulate([(0, torch.ones(tokens, 2), np.zeros(tokens, np.int64))])
        for name, tokens in seen.items()
    }
    return [
        row.module
        for row in undersampled_experts(Profile(provenance=provenance(sites, SAMPLES), statistics=statistics))
    ]


def test_an_expert_that_ran_on_all_tokens_is_not_undersampled() -> None:
    both = ["m.experts.1.up_proj", "m.experts.1.down_proj"]
    assert expert(behind="layers.0.mlp.experts.1.down_proj.input@all", over_all=16) == []
    assert expert(behind="layers.0.mlp.experts.1.down_proj.input@all", over_all=15) == both
    assert expert(behind=None, over_all=1000) == both, "what it reads is known, what it makes of it is not"
