"""A profile, a simulation and a card without anything from which the corpus' text could be rebuilt.

Gone are token ids and their text, positions but the first, and the names of samples, domains, files and columns. What
stays of a peak is its size, its channel, and in words what kind of token it was at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quantaudit.card.schema import Card
from quantaudit.card.sections.peak_locations import KIND_IDS, token_kind
from quantaudit.measure.profile import Profile
from quantaudit.provenance import REDACTED, CorpusInfo, SampleInfo
from quantaudit.simulate.records import Simulation
from quantaudit.stats.peaks import Peaks

PUBLIC = "builtin"
"""The corpus that everyone has: its names may stay."""
LATER = 1
"""Stands for every position after the first."""


def redact(profile: Profile) -> Profile:
    """The profile without its text; one that is redacted already is returned unchanged."""
    provenance = profile.provenance
    if provenance.corpus.redacted:
        return profile
    texts = provenance.token_text
    statistics = {
        key: replace(value, peaks=_peaks(value.peaks, texts)) for key, value in sorted(profile.statistics.items())
    }
    at_peaks = {int(token) for value in statistics.values() for token in value.peaks.token}
    names = domain_names(provenance.corpus)
    samples = [
        sample.model_copy(update={"id": f"sample-{index}", "domain": names[sample.domain]})
        for index, sample in enumerate(provenance.samples, start=1)
    ]
    ids = {old.id: new.id for old, new in zip(provenance.samples, samples, strict=True)}
    if provenance.corpus.spec == PUBLIC:
        samples, ids = provenance.samples, {}
    changed = {
        "corpus": _corpus(provenance.corpus, names, ids),
        "samples": samples,
        "token_text": {id_: kind for kind, id_ in KIND_IDS.items() if id_ in at_peaks},
    }
    return Profile(provenance=provenance.model_copy(update=changed), statistics=statistics)


def redact_simulation(simulation: Simulation, corpus: CorpusInfo, samples: Sequence[SampleInfo]) -> Simulation:
    """The simulation under the redacted names of domains and samples. corpus, samples: all of them, unredacted."""
    names = domain_names(corpus)
    ids = {} if corpus.spec == PUBLIC else {row.id: f"sample-{index}" for index, row in enumerate(samples, start=1)}
    evaluation = simulation.evaluation.model_copy(
        update={"samples": [ids.get(name, name) for name in simulation.evaluation.samples]}
    )
    rows = [
        row.model_copy(
            update={
                "domains": {names.get(name, name): score for name, score in row.domains.items()},
                "assistant_domains": {names.get(name, name): score for name, score in row.assistant_domains.items()},
            }
        )
        for row in simulation.recipes
    ]
    return simulation.model_copy(update={"recipes": rows, "evaluation": evaluation})


def without_other_domains(card: Card) -> Card:
    """A redacted card without scores by domains that it does not name, which a later run has added."""
    if card.simulation is None or not card.corpus.redacted:
        return card
    named = card.corpus.domains
    rows = [
        row.model_copy(
            update={
                "domains": {name: score for name, score in row.domains.items() if name in named},
                "assistant_domains": {name: score for name, score in row.assistant_domains.items() if name in named},
            }
        )
        for row in card.simulation.recipes
    ]
    return card.model_copy(update={"simulation": card.simulation.model_copy(update={"recipes": rows})})


def domain_names(corpus: CorpusInfo) -> dict[str, str]:
    """Domain → its name on a redacted card."""
    if corpus.spec == PUBLIC or corpus.redacted:
        return {name: name for name in corpus.domains}
    return {name: f"domain-{index}" for index, name in enumerate(sorted(corpus.domains), start=1)}


def _corpus(corpus: CorpusInfo, names: Mapping[str, str], ids: Mapping[str, str]) -> CorpusInfo:
    public = corpus.spec == PUBLIC
    hidden = {} if public else {"spec": REDACTED, "name": REDACTED, "revision": None}
    return corpus.model_copy(
        update={
            **hidden,
            "domains": {names[name]: counts for name, counts in corpus.domains.items()},
            "padded": [ids.get(name, name) for name in corpus.padded],
            "redacted": True,
        }
    )


def _peaks(peaks: Peaks, texts: Mapping[int, str]) -> Peaks:
    kinds: NDArray[np.int32] = np.asarray(
        [KIND_IDS[token_kind(int(token), texts.get(int(token)))] for token in peaks.token], np.int32
    )
    return replace(peaks, token=kinds, position=np.minimum(peaks.position, LATER))
