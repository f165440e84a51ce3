"""Statistics of the batches that a run has finished, as bytes: what it goes on from when it is resumed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors.numpy import load, save
from torch import nn

from quantaudit.common.outputs.resume import Pace, units_of
from quantaudit.common.progress import Advance, no_advance
from quantaudit.common.ranks.team import part_name, team
from quantaudit.measure.collector import StatisticsCollector
from quantaudit.measure.profile import Profile, statistics_arrays, statistics_from
from quantaudit.model.forward.batches import Batch, forward
from quantaudit.provenance import Provenance, Split
from quantaudit.stats.site import SiteStatistics, merge

_ABOUT = "about"


@dataclass(slots=True, kw_only=True)
class FinishedBatches:
    """What is known after so many batches, from the first. statistics: without those that are merged from others.

    fired, ran: how often tapped modules, and modules around them, were called. odd: sites that were dropped, and why;
    odd_at: in which batch first.
    """

    batches: int = 0
    statistics: Mapping[tuple[str, Split], SiteStatistics] = field(default_factory=dict)
    fired: Counter[str] = field(default_factory=Counter)
    ran: Counter[str] = field(default_factory=Counter)
    odd: Mapping[str, str] = field(default_factory=dict)
    odd_at: Mapping[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, collector: StatisticsCollector, fired: Counter[str], ran: Counter[str], batches: int
    ) -> FinishedBatches:
        """What was gathered so far."""
        gathered = collector.gathered()
        return cls(
            batches=batches, statistics=gathered, fired=fired, ran=ran, odd=collector.odd, odd_at=collector.odd_at
        )

    def to_bytes(self) -> bytes:
        """For `from_bytes`."""
        about = {name: getattr(self, name) for name in ("batches", "fired", "ran", "odd", "odd_at")}
        return _packed(self.statistics, about)

    @classmethod
    def from_bytes(cls, data: bytes | None) -> FinishedBatches:
        """None: nothing is finished yet."""
        if data is None:
            return cls()
        statistics, about = _unpacked(data)
        return cls(
            batches=about["batches"],
            statistics=statistics,
            fired=Counter(about["fired"]),
            ran=Counter(about["ran"]),
            odd=about["odd"],
            odd_at=about["odd_at"],
        )


def run_batches(
    model: nn.Module,
    collector: StatisticsCollector,
    dealt: Iterable[Batch],
    *,
    fired: Counter[str],
    ran: Counter[str],
    progress: Advance = no_advance,
    stage: str = "measuring",
) -> None:
    """Run batches with every site tapped. In a run that can be resumed, those that it had finished are passed over.

    fired, ran: counters that hooks add to; they go on from where they were. stage: name of the units that are kept.
    """
    units, pace = units_of(stage), Pace()
    key = f"batches{part_name()}"
    finished = FinishedBatches.from_bytes(units.get(key))
    collector.go_on_from(finished.statistics, finished.odd, finished.odd_at)
    fired.update(finished.fired)
    ran.update(finished.ran)
    for number, batch in enumerate(dealt, 1):
        if number > finished.batches:
            collector.batch = batch
            forward(model, batch)
            if units.kept and pace.due:
                with pace.keeping():
                    units.put(key, FinishedBatches.of(collector, fired, ran, number).to_bytes())
        progress(batch.tokens)


def combine_ranks(collector: StatisticsCollector, fired: Counter[str], ran: Counter[str]) -> None:
    """What each rank has of its batches becomes what one process has of all: statistics merge exactly."""
    if team().size == 1:
        return
    own = FinishedBatches.of(collector, fired, ran, 0)
    together = FinishedBatches.from_bytes(team().combined(own.to_bytes(), _merged))
    collector.go_on_from(together.statistics, together.odd, together.odd_at)
    fired.update(together.fired - fired)
    ran.update(together.ran - ran)


def _merged(parts: list[bytes]) -> bytes:
    statistics: dict[tuple[str, Split], SiteStatistics] = {}
    fired, ran, odd, odd_at = Counter[str](), Counter[str](), dict[str, str](), dict[str, list[int]]()
    while parts:
        part = FinishedBatches.from_bytes(parts.pop(0))
        for key, value in part.statistics.items():
            statistics[key] = merge(statistics[key], value) if key in statistics else value
        fired.update(part.fired)
        ran.update(part.ran)
        for site, place in part.odd_at.items():  # as one process says it: of the first batch in which it was seen
            if site not in odd_at or place < odd_at[site]:
                odd[site], odd_at[site] = part.odd[site], place
    return FinishedBatches(statistics=statistics, fired=fired, ran=ran, odd=odd, odd_at=odd_at).to_bytes()


def pack_profile(profile: Profile) -> bytes:
    """A profile, for `unpack_profile` alone."""
    return _packed(profile.statistics, {"provenance": profile.provenance.model_dump(mode="json")})


def unpack_profile(data: bytes) -> Profile:
    """The profile that was packed."""
    statistics, about = _unpacked(data)
    return Profile(provenance=Provenance.model_validate(about["provenance"]), statistics=statistics)


def _packed(statistics: Mapping[tuple[str, Split], SiteStatistics], about: Mapping[str, Any]) -> bytes:
    arrays, encodings = statistics_arrays(statistics)
    text = json.dumps({**about, "encodings": encodings}).encode()
    data: bytes = save({**arrays, _ABOUT: np.frombuffer(text, np.uint8)})
    return data


def _unpacked(data: bytes) -> tuple[dict[tuple[str, Split], SiteStatistics], dict[str, Any]]:
    arrays = load(data)
    about = json.loads(arrays.pop(_ABOUT).tobytes())
    return statistics_from(arrays, about["encodings"]), about
