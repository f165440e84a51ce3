"""Which tensor each Linear reads, from a card, which holds experts by their peaks alone."""

from __future__ import annotations

from typing import Any

import pytest

from quantaudit.card.build import build_card
from quantaudit.card.schema import Card
from quantaudit.conform.artifacts.records import InputRange
from quantaudit.conform.card_inputs import fused_groups, input_sites
from quantaudit.conform.rules.ranges import covered
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.policy import load_policy
from quantaudit.stats.site import summary
from tests.builders import load, random_corpus, save_checkpoint
from tests.families import family_model

Mixture = tuple[Profile, Card]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    folder = save_checkpoint(tmp_path_factory.mktemp("moe") / "m", family_model("qwen3-moe"))
    profile = measure(load(folder), random_corpus([60, 50, 50, 40, 40, 40, 30, 30]))
    return profile, build_card(profile, [], None, load_policy(), timings={})


def expert_sites(profile: Profile) -> dict[str, Any]:
    """Linear of an expert → its own input's site."""
    return {member: site for site in profile.sites if site.kind == "expert_input" for member in site.members}


def test_every_linear_reads_the_site_that_lists_it(mixture: Mixture, tiny_profile: Profile) -> None:
    profile, card = mixture
    sites = input_sites(card)
    members = {member: site for site in profile.sites if site.kind == "linear_input" for member in site.members}
    assert sites.keys() == members.keys()
    experts = expert_sites(profile)
    for member, row in sites.items():
        if member not in experts:
            assert row.name == members[member].name


def test_an_experts_linears_have_their_experts_peak(mixture: Mixture) -> None:
    profile, card = mixture
    experts = expert_sites(profile)
    assert len(experts) > 8
    listed = [member for group in fused_groups(card).values() for member in group if member in experts]
    assert sorted(listed) == sorted(experts)
    sites = input_sites(card)
    for member, site in experts.items():
        whole = profile.whole(site.name)
        assert whole is not None
        assert sites[member].amax == summary(whole).amax, member
        assert sites[member].name == site.name


def test_a_peak_alone_is_covered_by_the_wider_side(mixture: Mixture) -> None:
    profile, card = mixture
    site = input_sites(card)[next(iter(expert_sites(profile)))]
    assert site.amax
    row = InputRange(module="m", tensor="t", scale=1.0, zero_point=0.0, low=-3 * site.amax, high=site.amax, epsilons=())
    assert covered(row, site) == pytest.approx(3)
    assert covered(row, site.model_copy(update={"amax": None})) is None
