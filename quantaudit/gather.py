"""Statistics of all sites while batches pass through a model, whoever runs them, and what none of them reached."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor

from quantaudit.model.drive import NO_TOKEN, SPLITS, Batch, Share
from quantaudit.model.routing import Routing
from quantaudit.model.sites import Architecture
from quantaudit.profile import Split
from quantaudit.provenance import Unmeasured
from quantaudit.stats.labels import ALL, Chosen, Labels
from quantaudit.stats.site import SiteStatistics, merge

PATCH = "image patch"
"""What a peak in a vision tower has for a token's text."""


class Recorder(Protocol):
    """What makes empty statistics of sites, for tensors of one device."""

    def site(self, dtype: torch.dtype, *, sparse: bool = False) -> SiteRecorder: ...


class SiteRecorder(Protocol):
    """Running statistics of one site in both splits."""

    def add(self, x_NC: Tensor, labels: Labels, chosen: Chosen = ALL) -> None: ...

    def result(self, split: int) -> SiteStatistics | None: ...


def recorder_for(device: torch.device) -> Recorder:
    """Compiled code for main memory, PyTorch's operations for an accelerator."""
    if device.type == "cpu":
        from quantaudit.stats.host import HostRecorder

        return HostRecorder()
    from quantaudit.stats.device import DeviceRecorder

    return DeviceRecorder()


class Gathered:
    """Statistics by site and split, fed with whole tensors of the batch at hand.

    A tensor is read before its hook returns and never kept: models change some in place afterwards.
    """

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
        self._recorders: dict[torch.device, Recorder] = {}
        self._records: dict[tuple[str, torch.dtype, torch.device], SiteRecorder] = {}
        self._batch: Batch | None = None
        self.routing = Routing(architecture.banks, all_tokens=all_tokens)

    @property
    def batch(self) -> Batch:
        """The batch on its way."""
        assert self._batch is not None
        return self._batch

    @batch.setter
    def batch(self, batch: Batch) -> None:
        if batch is not self._batch:
            self.routing.check()
            batch.labels()  # now, for a mask may have to be fetched
            self._batch = batch

    def receive(self, site: str, tensor: Tensor) -> None:
        """Add a site's tensor: only valid tokens, padding never enters a statistic."""
        x_NC = tensor if tensor.ndim == 2 else tensor.reshape(-1, tensor.shape[-1])
        record = self._records.get((site, tensor.dtype, tensor.device))
        if record is None:
            record = self._start(site, tensor)
        for labels, chosen in self._shares(site, x_NC):
            record.add(x_NC, labels, chosen)

    def _shares(self, site: str, x_NC: Tensor) -> Iterable[Share]:
        batch, bank = self.batch, self._bank.get(site)
        if batch.inputs and site in self._aside:
            return batch.patches(x_NC)
        if bank is None:
            return batch.shares(x_NC, site)
        return batch.routed(x_NC, self.routing.of(bank, all_tokens=site in self._over_all), site)

    def _start(self, site: str, tensor: Tensor) -> SiteRecorder:
        if tensor.device not in self._recorders:
            self._recorders[tensor.device] = recorder_for(tensor.device)
        made = self._recorders[tensor.device].site(tensor.dtype, sparse=site in self._bank)
        return self._records.setdefault((site, tensor.dtype, tensor.device), made)

    def result(self) -> dict[tuple[str, Split], SiteStatistics]:
        """What was gathered; a site with parts is their merge."""
        self.routing.check()
        found: dict[tuple[str, Split], SiteStatistics] = {}
        for (site, _, _), record in self._records.items():
            for index, split in enumerate(SPLITS):
                part, key = record.result(index), (site, split)
                if part is not None:
                    found[key] = merge(found[key], part) if key in found else part
        for info in self._sites:
            for split in SPLITS:
                parts = [found[part, split] for part in info.parts if (part, split) in found]
                if parts:
                    found[info.name, split] = reduce(merge, parts)
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
