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
from quantaudit.measure.collector import StatisticsCollector
from quantaudit.measure.profile import Profile, statistics_arrays, statistics_from
from quantaudit.model.forward.batches import Batch, forward
from quantaudit.provenance import Provenance, Split
from quantaudit.stats.site import SiteStatistics

_ABOUT = "about"


@dataclass(slots=True, kw_only=True)
class FinishedBatches:
    """What is known after so many batches, from the first. statistics: without those that are merged from others.

    fired, ran: how often tapped modules, and modules around them, were called. odd: sites that were dropped, and why.
    """

    batches: int = 0
    statistics: Mapping[tuple[str, Split], SiteStatistics] = field(default_factory=dict)
    fired: Counter[str] = field(default_factory=Counter)
    ran: Counter[str] = field(default_factory=Counter)
    odd: Mapping[str, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """For `from_bytes`."""
        about = {"batches": self.batches, "fired": self.fired, "ran": self.ran, "odd": self.odd}
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
    finished = FinishedBatches.from_bytes(units.get("batches"))
    collector.go_on_from(finished.statistics, finished.odd)
    fired.update(finished.fired)
    ran.update(finished.ran)
    for number, batch in enumerate(dealt, 1):
        if number > finished.batches:
            collector.batch = batch
            forward(model, batch)
            if units.kept and pace.due:
                with pace.keeping():
                    now = FinishedBatches(
                        batches=number, statistics=collector.gathered(), fired=fired, ran=ran, odd=collector.odd
                    )
                    units.put("batches", now.to_bytes())
        progress(batch.tokens)


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
