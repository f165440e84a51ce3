"""The card's data model: what `card.json` holds, and the only thing that renderers, gate and compare read.

A non-finite number is written as null; where that can happen the row says why (`nonfinite`). Quantiles are of |x|,
NumPy's `inverted_cdf`. Magnitudes are in the units of the tensor; errors carry their unit in their name.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from pydantic import Field, ValidationError

from quantaudit.card.schema.agreement import (
    corpus_problems,
    correlation_problems,
    coverage_problems,
    origin_problems,
    peak_problems,
    scale_problems,
    site_problems,
    stability_problems,
)
from quantaudit.card.schema.measured import (
    Coverage,
    GlobalPeak,
    Landscape,
    MagnitudesRow,
    Peak,
    PeakSummary,
    PublishedPeak,
    SiteRow,
)
from quantaudit.card.schema.places import ExpertLayer, ExpertsInfo, PersistentChannel, PlaceRow, PlacesInfo
from quantaudit.card.schema.recipes import (
    AdviceChange,
    AdviceInfo,
    AdvicePoint,
    ScaleComparison,
    Verification,
    VerifiedScore,
)
from quantaudit.card.schema.simulated import simulation_problems, verdict_problems
from quantaudit.card.schema.stability import (
    BucketRow,
    ExceedanceInfo,
    ExceedanceRow,
    PeakStability,
    StabilityInfo,
    SubsetRow,
    TailRow,
)
from quantaudit.card.schema.summary import summary
from quantaudit.card.schema.verdict import Finding, SchemeVerdict, Verdict, VerdictLimits, WorstGroup
from quantaudit.common.outputs.file_set import finish
from quantaudit.common.reading.json_document import check_json
from quantaudit.common.reading.regular_files import CARD_BYTES, read_text
from quantaudit.errors import FormatError
from quantaudit.provenance import CorpusInfo, EnvironmentInfo, ModelInfo, Row, explain
from quantaudit.simulate.records import CorrelationRow, ScaleRow, Simulation

__all__ = [
    "SCHEMA_VERSION",
    "AdviceChange",
    "AdviceInfo",
    "AdvicePoint",
    "BucketRow",
    "Card",
    "Coverage",
    "ExceedanceInfo",
    "ExceedanceRow",
    "ExpertLayer",
    "ExpertsInfo",
    "Finding",
    "GlobalPeak",
    "Landscape",
    "MagnitudesRow",
    "Peak",
    "PeakStability",
    "PeakSummary",
    "PersistentChannel",
    "PlaceRow",
    "PlacesInfo",
    "PublishedPeak",
    "ScaleComparison",
    "SchemeVerdict",
    "SiteRow",
    "StabilityInfo",
    "SubsetRow",
    "TailRow",
    "Verdict",
    "VerdictLimits",
    "Verification",
    "VerifiedScore",
    "WorstGroup",
    "check_simulation",
    "dump_card",
    "load_card",
]

SCHEMA_VERSION = "1.0"
"""History: 1.0 first edition."""
MOST_NAMED = 5
"""Contradictions that a refusal lists."""


class Card(Row):
    """The activation card."""

    schema_version: str = SCHEMA_VERSION
    quantaudit_version: str
    created: str
    profile_sha256: str | None = Field(
        default=None, description="digest of the profile that it was made from; null in older cards"
    )
    model: ModelInfo
    corpus: CorpusInfo
    environment: EnvironmentInfo
    peak: PeakSummary
    coverage: Coverage
    sites: list[SiteRow]
    scales: list[ScaleRow]
    simulation: Simulation | None
    verification: list[Verification]
    correlation: list[CorrelationRow]
    advice: list[AdviceInfo] = Field(default=[])
    stability: StabilityInfo | None
    places: PlacesInfo | None
    experts: ExpertsInfo | None = Field(default=None, description="null for a model without routed experts")
    landscape: Landscape
    findings: list[Finding]
    verdict: Verdict
    seal: str | None = Field(
        default=None,
        description="SHA-256 over all the rest as JSON with sorted keys, by which edits show; null in older cards",
    )

    def __repr__(self) -> str:
        """At most ten lines: a card has megabytes."""
        return summary(self.model, self.corpus, self.verdict, self.findings)

    __str__ = __repr__

    def __rich_repr__(self) -> Iterator[tuple[str, str]]:
        """As little for Rich, which would unfold every field."""
        yield from (("model", self.model.name), ("verdict", self.verdict.headline))

    def _repr_html_(self) -> str:
        """The verdict tiles and the layer map, for a notebook."""
        # Pages read the schema, which does not know them: they are looked up by name, in a notebook.
        html: str = import_module("quantaudit.card.notebook").render_notebook(self)
        return html


def load_card(path: str | Path) -> Card:
    """Read and validate a card. Raises FormatError when it is missing, not JSON, or not a card of this version.

    >>> card = quantaudit.load_card("quantaudit-demo/card.json")
    >>> [verdict.title for verdict in card.verdict.schemes[:2]]
    ['INT8 static per-tensor', 'INT8 dynamic per-token']
    """
    path = Path(path)
    finish(path.parent)
    try:
        text = read_text(path, CARD_BYTES)
    except UnicodeDecodeError as error:
        raise FormatError(
            "not a card, but no text at all", where=str(path), hint="give a report's card.json"
        ) from error
    except OSError as error:
        problem = error.strerror or type(error).__name__
        raise FormatError(
            f"cannot read the card: {problem[:1].lower()}{problem[1:]}",
            where=str(path),
            hint="make one with `quantaudit report`, and give its card.json",
        ) from error
    try:
        check_json(text)
        card = Card.model_validate_json(text)
    except ValidationError as error:
        raise FormatError(
            f"not an activation card: {explain(error)}",
            where=str(path),
            hint="make one with `quantaudit report`",
        ) from error
    except ValueError as error:
        raise FormatError(
            f"not an activation card: {error}", where=str(path), hint="make one with `quantaudit report`"
        ) from error
    if card.schema_version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise FormatError(
            f"card has schema {card.schema_version}, this version reads {SCHEMA_VERSION}",
            where=str(path),
            hint="make the card again with `quantaudit report`",
        )
    if card.simulation is not None:
        check_simulation(card.simulation, card, where=str(path))
    if problems := contradictions(card):
        raise FormatError(
            f"not the card of one audit: {'; '.join(problems[:MOST_NAMED])}",
            where=str(path),
            hint="make the card again with `quantaudit report`",
        )
    return card


def contradictions(card: Card) -> list[str]:
    """What in a card cannot be of one model, one text and one simulation; empty where its parts agree."""
    return [
        *origin_problems((card.schema_version, card.quantaudit_version), card.model.dtype),
        *corpus_problems(card.corpus),
        *coverage_problems(card.coverage, card.corpus, card.model.layers),
        *site_problems(card.sites),
        *peak_problems(card.peak, card.sites),
        *scale_problems(card.scales, card.sites),
        *correlation_problems(card.correlation),
        *(stability_problems(card.stability) if card.stability else ()),
        *verdict_problems(card.verdict, card.simulation, card.sites),
    ]


def check_simulation(simulation: Simulation, card: Card, *, where: str) -> None:
    """Raises FormatError where a simulation is not of what a card measured: of other weights, text or measurements, or
    not of one run.

    Names of modules say little. where: the file or option that the simulation came from.
    """
    hint = "simulate with the card's own profile: `quantaudit simulate MODEL --profile …/profile.safetensors`"
    if simulation.fingerprint != card.model.fingerprint:
        raise FormatError(
            f"simulation is of other weights ({simulation.fingerprint[:16]}) than the card of {card.model.name} "
            f"({card.model.fingerprint[:16]})",
            where=where,
            hint="simulate the model that the card is of",
        )
    if simulation.corpus_sha256 != card.corpus.sha256:
        raise FormatError(
            f"simulation is of another corpus ({simulation.corpus_sha256[:16]}) than the card "
            f"({card.corpus.name}, {card.corpus.sha256[:16]})",
            where=where,
            hint=hint,
        )
    digests = simulation.profile_sha256, card.profile_sha256
    if None not in digests and digests[0] != digests[1]:
        raise FormatError(
            f"simulation is of another profile ({str(digests[0])[:16]}) of these weights and this corpus than the card "
            f"({str(digests[1])[:16]})",
            where=where,
            hint=hint,
        )
    if problems := list(simulation_problems(card.model, card.corpus, simulation)):
        raise FormatError(
            f"not a simulation of one run: {'; '.join(problems[:MOST_NAMED])}", where=where, hint="simulate again"
        )


def dump_card(card: Card) -> str:
    """The card as JSON text, keys in the order of the model, ending in a newline."""
    return card.model_dump_json(indent=1) + "\n"
