"""The routed experts of a mixture, in few numbers: how many tokens each of them saw, and how large its inputs get."""

from __future__ import annotations

from statistics import median

from quantaudit.card.schema import ExpertLayer, ExpertsInfo
from quantaudit.card.text import counted
from quantaudit.measure.profile import EXPERT_TOKENS, Profile, tokens, undersampled_inputs
from quantaudit.provenance import SiteInfo
from quantaudit.stats.site import summary

KINDS = ("expert_input", "expert_input_all")
"""Sites of single experts: a card holds them here, and each layer's merged site among its sites."""


def experts_info(profile: Profile) -> ExpertsInfo | None:
    """Every layer's experts in the order of the layers; None for a model without routed experts."""
    lists: dict[tuple[int | None, str], list[SiteInfo]] = {}
    for site in profile.sites:
        if site.parts and site.kind == "linear_input":
            lists.setdefault((site.layer, _list_of(site)), []).append(site)
    if not lists:
        return None
    layers = [_layer(profile, name, layer or 0, merged) for (layer, name), merged in lists.items()]
    return ExpertsInfo(
        enough=EXPERT_TOKENS,
        layers=layers,
        calibration=_calibration(profile),
        reading=_reading(
            layers, unmeasured=len({site.module.rpartition(".")[0] for site in undersampled_inputs(profile)})
        ),
    )


def _layer(profile: Profile, name: str, layer: int, merged: list[SiteInfo]) -> ExpertLayer:
    observed = {site.name.removesuffix(".input").rpartition(".")[2]: site for site in merged}
    amax = {projection: [_amax(profile, part) for part in site.parts] for projection, site in observed.items()}
    over_all = {
        projection: [_amax(profile, profile.by_name[part].all_tokens or part) for part in site.parts]
        for projection, site in observed.items()
        if site.all_tokens is not None
    }
    return ExpertLayer(
        name=name,
        layer=layer,
        tokens=[tokens(profile, part) for part in merged[0].parts],
        amax=amax,
        amax_all_tokens=over_all,
    )


def _reading(layers: list[ExpertLayer], *, unmeasured: int) -> str:
    """One or two sentences on how many tokens the experts saw.

    unmeasured: how many experts saw too few tokens, and were not run on all.
    """
    counts = [count for layer in layers for count in layer.tokens]
    few = sum(count < EXPERT_TOKENS for count in counts)
    text = (
        f"{counted(len(counts), 'expert')} in {counted(len(layers), 'layer')}; an expert saw "
        f"{min(counts):,} to {counted(max(counts), 'token')}, "
        f"{median(counts):,.0f} at the median. "
    )
    if not few:
        return text + f"Every one saw at least {EXPERT_TOKENS}."
    text += f"{few:,} of them saw fewer than {EXPERT_TOKENS} routed tokens"
    if unmeasured and unmeasured < few:
        return f"{text}: {unmeasured:,} are not measured, the others were run on all tokens."
    return text + (" and are not measured." if unmeasured else ", but were run on all tokens.")


def _list_of(site: SiteInfo) -> str:
    """Name of a layer's list of experts: `layers.3.mlp.experts`."""
    return site.name.removesuffix(".input").rpartition(".")[0]


def _amax(profile: Profile, site: str) -> float | None:
    whole = profile.whole(site)
    return None if whole is None else summary(whole).amax


def _calibration(profile: Profile) -> str:
    """Which tokens static ranges of experts were taken from, against what `oneshot` takes."""
    inputs = [site for site in profile.sites if site.kind == "expert_input"]
    over_all = sum(site.all_tokens is not None for site in inputs)
    if over_all == len(inputs):
        return "Static ranges of experts are those over all tokens, as llm-compressor's `oneshot` calibrates them."
    if over_all:
        return (
            "Static ranges of what experts read are those over all tokens, as llm-compressor's `oneshot` calibrates "
            "them; behind the gate they are those of the routed tokens, where `oneshot` sees all: its ranges can be "
            "wider. Measure with `--experts all` for those."
        )
    return "Static ranges of experts are those of the tokens routed to them; `oneshot` sees no others in this layout."
