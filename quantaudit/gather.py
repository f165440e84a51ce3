"""Statistics of all sites while batches pass through a model, whoever runs them, and what none of them reached."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
from torch import Tensor

from quantaudit.model.drive import NO_TOKEN, Batch
from quantaudit.model.routing import Routing
from quantaudit.model.sites import Architecture
from quantaudit.profile import SPLITS, Split
from quantaudit.provenance import Unmeasured
from quantaudit.stats.accumulator import Accumulator, PatternCounter
from quantaudit.stats.site import SiteStatistics, merge

PATCH = "image patch"
"""What a peak in a vision tower has for a token's text."""


class Gathered:
    """Statistics by site and split, fed with whole tensors of the batch at hand."""

    batch: Batch

    def __init__(self, architecture: Architecture, *, aside: frozenset[str], all_tokens: bool) -> None:
        self._sites = architecture.sites
        self._aside = aside
        self._over_all = {site.name for site in architecture.sites if site.kind == "expert_input_all"}
        self._bank = {
            site.name: bank.path
            for bank in architecture.banks
            for site in architecture.sites
            if site.module.startswith(f"{bank.path}.")
        }
        self._count = PatternCounter()
        self._accumulators: dict[tuple[str, Split], Accumulator] = {}
        self.routing = Routing(architecture.banks, all_tokens=all_tokens)

    def receive(self, site: str, tensor: Tensor) -> None:
        """Add a site's tensor: only valid tokens, padding never enters a statistic."""
        x_NC = tensor.reshape(-1, tensor.shape[-1])
        bank = self._bank.get(site)
        patches = bool(self.batch.inputs) and site in self._aside
        if patches:
            shares = self.batch.patches(x_NC)
        elif bank is None:
            shares = self.batch.shares(x_NC, site)
        else:
            rows = self.routing.of(bank, all_tokens=site in self._over_all)
            shares = self.batch.routed(x_NC, rows, site)
        for sample, x_TC, positions_T in shares:
            key = (site, sample.split)
            if key not in self._accumulators:
                self._accumulators[key] = Accumulator(self._count, sparse=bank is not None)
            tokens_T = sample.ids if positions_T is None else sample.ids[positions_T]
            if patches:
                tokens_T = np.full(len(x_TC), NO_TOKEN, np.int64)
            self._accumulators[key].update(x_TC, sample=sample.index, tokens_T=tokens_T, positions_T=positions_T)

    def result(self) -> dict[tuple[str, Split], SiteStatistics]:
        """What was gathered; a site with parts is their merge."""
        found = {key: accumulator.result() for key, accumulator in self._accumulators.items()}
        for site in self._sites:
            for split in SPLITS:
                parts = [found[part, split] for part in site.parts if (part, split) in found]
                if parts:
                    found[site.name, split] = reduce(merge, parts)
        return found


def silent(architecture: Architecture, fired: Counter[str], ran: Counter[str], *, images: bool) -> list[Unmeasured]:
    """Linears and components whose hook never fired, but for those of experts that were merely not chosen."""
    idle = {expert for bank in architecture.banks if ran[_parent(bank.path)] for expert in bank.experts}
    found = [
        Unmeasured(module=member, reason=_why_silent(member, ran, images=images), weights=True)
        for group in architecture.groups
        for member in group.members
        if not fired[member] and (ran[_parent(member)] or _parent(member) not in idle)
    ]
    found += [
        Unmeasured(module=site.name, reason=f"{site.module} never ran in the forward pass")
        for site in architecture.sites
        if site.tap == "output" and not fired[f"{site.module}:output"]
    ]
    return found


def _why_silent(member: str, ran: Counter[str], *, images: bool) -> str:
    if not images and re.search(r"(^|\.)(vision|visual|multi_modal|image)", member):
        return "no images in the corpus"
    if ran[_parent(member)]:
        return "never ran although the module around it did, which must use its weights by itself or not at all"
    return "never ran in the forward pass"


def parents(architecture: Architecture) -> set[str]:
    """Modules around Linears, and around lists of experts."""
    inside = {_parent(member) for group in architecture.groups for member in group.members}
    return inside | {_parent(bank.path) for bank in architecture.banks}


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def token_text(tokenizer: Any, statistics: Mapping[tuple[str, Split], SiteStatistics]) -> dict[int, str]:
    """Tokens at peaks, by id, as a tokenizer spells them."""
    ids = sorted({int(token) for value in statistics.values() for token in value.peaks.token})
    return {token: PATCH if token == NO_TOKEN else tokenizer.decode([token]) for token in ids}
