"""Statistics of all sites while batches pass through a model, whoever runs them, and what none of them reached."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor

from quantaudit.errors import MeasurementError
from quantaudit.measure.follower import Follower
from quantaudit.model.forward.batches import NO_TOKEN, Batch, LabeledRows
from quantaudit.model.forward.routing import Routing
from quantaudit.model.sites import Architecture
from quantaudit.model.structure import parent_of
from quantaudit.provenance import SPLITS, Split, Unmeasured, UnmeasuredCause
from quantaudit.stats.labels import ALL, Chosen, Labels
from quantaudit.stats.site import SiteStatistics, merge

PATCH = "image patch"
"""What a peak in a vision tower has for a token's text."""

BYPASSED = "the scan around it reads its weights and never calls it: no engine quantizes its input"
"""A state-space mixer's projection of time steps, which vLLM and transformers keep unquantized."""


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
        from quantaudit.stats.kernels.host import HostRecorder

        return HostRecorder()
    from quantaudit.stats.kernels.device import DeviceRecorder

    return DeviceRecorder()


class StatisticsCollector(Follower):
    """Statistics by site and split, fed with whole tensors of the batch at hand.

    A tensor is read before its hook returns and never kept: models change some in place afterwards.
    """

    def __init__(self, architecture: Architecture, *, non_text: frozenset[str], all_tokens: bool) -> None:
        super().__init__()
        self._sites = architecture.sites
        self._non_text = non_text
        self._over_all = {site.name for site in architecture.sites if site.kind == "expert_input_all"}
        self._experts_of = {
            site.name: expert_list.path
            for expert_list in architecture.expert_lists
            for site in architecture.sites
            if site.module.startswith(f"{expert_list.path}.")
        }
        self._recorders: dict[torch.device, Recorder] = {}
        self._records: dict[tuple[str, torch.dtype, torch.device], SiteRecorder] = {}
        self.routing = Routing(architecture.expert_lists, all_tokens=all_tokens)
        self._earlier: dict[tuple[str, Split], SiteStatistics] = {}
        self.odd: dict[str, str] = {}
        """Sites whose rows are not those of the tokens, and what they are."""
        self.odd_at: dict[str, list[int]] = {}
        """In which batch that was seen first: its place in the order of batches."""

    def turn(self, batch: Batch) -> None:
        """What the routing of the last batch shows is settled before another one runs."""
        self._settle_routing()
        batch.labels()  # now, for a mask may have to be fetched

    def receive(self, site: str, tensor: Tensor) -> None:
        """Add a site's tensor: only valid tokens, padding never enters a statistic.

        A site whose rows are not those of the tokens is dropped, with all that it had, and listed in `odd`.
        """
        if site in self.odd or self.ignores:
            return
        try:
            record = self._records.get((site, tensor.dtype, tensor.device))
            if record is None:
                record = self._start(site, tensor)
            for x_NC in self._by_token(site, tensor):
                for labels, chosen in self._labeled_rows(site, x_NC):
                    record.add(x_NC, labels, chosen)
        except MeasurementError as error:
            self.refuse(site, error)

    def refuse(self, site: str, error: MeasurementError) -> None:
        """Drop a site that is not understood, with all that it had."""
        if site not in self.odd:
            self.odd[site] = error.message
            self.odd_at[site] = [] if self._batch is None else place_of(self._batch)
        for key in [key for key in self._records if key[0] == site]:
            del self._records[key]

    def _settle_routing(self) -> None:
        """Drop the experts that were given other rows in the last batch than were routed to them."""
        for where, reason in self.routing.problems().items():
            for site in [name for name, experts in self._experts_of.items() if experts == where]:
                self.refuse(site, MeasurementError(reason))

    def _by_token(self, site: str, tensor: Tensor) -> Sequence[Tensor]:
        if tensor.ndim == 2 or site in self._experts_of or (self.batch.inputs and site in self._non_text):
            return (tensor if tensor.ndim == 2 else tensor.reshape(-1, tensor.shape[-1]),)
        return by_token(tensor, self.batch.input_ids.shape)

    def _labeled_rows(self, site: str, x_NC: Tensor) -> Iterable[LabeledRows]:
        batch, experts = self.batch, self._experts_of.get(site)
        if batch.inputs and site in self._non_text:
            return batch.patches(x_NC)
        if experts is None:
            return batch.split_by_sample(x_NC, site)
        return batch.routed(x_NC, self.routing.of(experts, all_tokens=site in self._over_all), site)

    def _start(self, site: str, tensor: Tensor) -> SiteRecorder:
        if tensor.device not in self._recorders:
            self._recorders[tensor.device] = recorder_for(tensor.device)
        recorder = self._recorders[tensor.device].site(tensor.dtype, sparse=site in self._experts_of)
        return self._records.setdefault((site, tensor.dtype, tensor.device), recorder)

    def go_on_from(
        self,
        statistics: Mapping[tuple[str, Split], SiteStatistics],
        odd: Mapping[str, str],
        odd_at: Mapping[str, list[int]],
    ) -> None:
        """Begin with what was `gathered` of batches, and with nothing else. odd: sites that were dropped, and why."""
        self._earlier, self.odd, self.odd_at = dict(statistics), dict(odd), dict(odd_at)
        self._records.clear()

    def finish(self, path: str) -> None:
        """All batches are through the module at this path: keep the results of its sites, and drop what counts."""
        self._settle_routing()
        inside = {site.name for site in self._sites if f"{site.module}.".startswith(f"{path}.")}
        done = {key: record for key, record in self._records.items() if key[0] in inside}
        _add_results(self._earlier, done)
        for key in done:
            del self._records[key]

    def gathered(self) -> dict[tuple[str, Split], SiteStatistics]:
        """Statistics so far of every site that fired, but for sites with parts; more may be added afterwards."""
        self._settle_routing()
        statistics = {key: value for key, value in self._earlier.items() if key[0] not in self.odd}
        _add_results(statistics, self._records)
        return statistics

    def result(self) -> dict[tuple[str, Split], SiteStatistics]:
        """Statistics of every site that fired; a site with parts is their merge."""
        statistics = self.gathered()
        for info in self._sites:
            for split in SPLITS:
                parts = [statistics[part, split] for part in info.parts if (part, split) in statistics]
                if parts:
                    statistics[info.name, split] = reduce(merge, parts)
        return statistics


def place_of(batch: Batch) -> list[int]:
    """What orders batches as they run: those of text first, the longest first."""
    first = batch.samples[0]
    return [int(first.pictures is not None), -len(first.ids), first.index]


def _add_results(
    statistics: dict[tuple[str, Split], SiteStatistics],
    records: Mapping[tuple[str, torch.dtype, torch.device], SiteRecorder],
) -> None:
    """Add what was recorded to the statistics of its sites."""
    for (site, _, _), record in records.items():
        for index, split in enumerate(SPLITS):
            part, key = record.result(index), (site, split)
            if part is not None:
                statistics[key] = merge(statistics[key], part) if key in statistics else part


def by_token(x: Tensor, shape: Sequence[int]) -> Sequence[Tensor]:
    """A tensor as tensors [batch x tokens, channels] of one row a token; a tensor of another shape as [rows, channels].

    x: [batch, tokens, channels]; [batch, tokens, …, channels], as of heads; or […, batch, tokens, channels], as of
    streams that run side by side. shape: (batch, tokens).
    """
    if x.ndim == 3:  # as nearly all are
        return (x.view(-1, x.shape[-1]) if x.is_contiguous() else x.reshape(-1, x.shape[-1]),)
    if x.ndim > 3 and tuple(x.shape[:2]) == tuple(shape):
        x = x.flatten(2, -2).movedim(2, 0)
    if x.ndim > 3 and tuple(x.shape[-3:-1]) == tuple(shape):
        return [stream.reshape(-1, x.shape[-1]) for stream in x.flatten(0, -4)]
    return (x.reshape(-1, x.shape[-1]),)


def unreadable(architecture: Architecture, odd: Mapping[str, str]) -> list[Unmeasured]:
    """Sites whose rows are not those of the tokens, and the Linears that read them."""
    rows = []
    for site in architecture.sites:
        if site.name in odd:
            modules = site.members or [site.name]
            reason = f"{odd[site.name]}: its rows are not the tokens'"
            rows += [
                Unmeasured(module=module, reason=reason, weights=bool(site.members), cause="other_rows")
                for module in modules
            ]
    return rows


def never_fired(
    architecture: Architecture, fired: Counter[str], ran: Counter[str], *, images: bool
) -> list[Unmeasured]:
    """Linears and components whose hook never fired, but for those of experts that were merely not chosen."""
    idle = {
        expert
        for expert_list in architecture.expert_lists
        if ran[parent_of(expert_list.path)]
        for expert in expert_list.experts
    }
    rows = [
        Unmeasured(module=member, reason=BYPASSED, weights=False, cause="uncalled")
        if member.endswith(".dt_proj") and ran[parent_of(member)]
        else _never_ran(member, ran, images=images)
        for group in architecture.groups
        for member in group.members
        if not fired[member] and (ran[parent_of(member)] or parent_of(member) not in idle)
    ]
    rows += [
        Unmeasured(module=site.name, reason=f"{site.module} never ran in the forward pass", cause="never_ran")
        for site in architecture.sites
        if site.tap == "output" and not fired[f"{site.module}:output"]
    ]
    return rows


def _never_ran(member: str, ran: Counter[str], *, images: bool) -> Unmeasured:
    """Why a Linear never ran, as far as can be known from the module around it."""
    reason = "never ran in the forward pass"
    cause: UnmeasuredCause = "never_ran"
    if not images and re.search(r"(^|\.)(vision|visual|multi_modal|image)", member):
        reason, cause = "no images in the corpus", "no_images"
    elif ran[parent_of(member)]:
        reason = "never ran although the module around it did, which must use its weights by itself or not at all"
        cause = "uncalled"
    return Unmeasured(module=member, reason=reason, weights=True, cause=cause)


def parents(architecture: Architecture) -> set[str]:
    """Modules around Linears, and around lists of experts."""
    inside = {parent_of(member) for group in architecture.groups for member in group.members}
    return inside | {parent_of(expert_list.path) for expert_list in architecture.expert_lists}


def token_text(tokenizer: Any, statistics: Mapping[tuple[str, Split], SiteStatistics]) -> dict[int, str]:
    """Tokens at peaks, by id, as a tokenizer spells them."""
    ids = sorted({int(token) for value in statistics.values() for token in value.peaks.token})
    return {token: PATCH if token == NO_TOKEN else tokenizer.decode([token]) for token in ids}
