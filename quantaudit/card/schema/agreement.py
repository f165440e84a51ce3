"""Whether the parts of a card can be of one audit: what contradicts what, in words that name both."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence

from quantaudit.card.schema.measured import FP16_MAX, Coverage, MagnitudesRow, PeakSummary, SiteRow
from quantaudit.card.schema.stability import StabilityInfo
from quantaudit.provenance import CorpusInfo, SplitInfo
from quantaudit.simulate.records import CorrelationRow, ScaleRow, repeated

CLOSE = 1e-6
"""Relative difference up to which two numbers are one that was computed twice."""
SITES_PER_LINEAR, SITES_PER_LAYER = 4, 16
"""Observed tensors at most: an input of each Linear, counted twice for experts, and the streams around them; real
models have about one for each Linear, and one or two for each layer."""
SHOWN = 40
"""Characters of a text that is none of its kind."""
COARSE = 2.0**-7
"""Relative difference between an exact extreme and a quantile of values that were counted after rounding to 16 bits."""

LEAST_SCALE = 2.0**-7
"""What compressed-tensors gives a tensor of zeros: the machine epsilon of bfloat16, the coarsest of the dtypes."""


def origin_problems(versions: Iterable[str], dtype: str) -> Iterator[str]:
    """Versions and a dtype that are none."""
    for version in versions:
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)*([a-z.+-][a-z0-9.+-]*)?", version):
            yield f"{version[:SHOWN]!r} is no version"
    if not re.fullmatch(r"bfloat16|float(16|32|64)|float[48]_[a-z0-9_]+", dtype):
        yield f"model.dtype: {dtype[:SHOWN]!r} is no dtype of weights"


def corpus_problems(corpus: CorpusInfo) -> Iterator[str]:
    """Where the sizes of a corpus do not add up, by split and by domain, or more of it repeats than there is."""
    if (corpus.overlapping or 0) > corpus.evaluation.samples or (corpus.repeated or 0) > corpus.samples:
        yield f"corpus: {corpus.overlapping} overlapping and {corpus.repeated} repeated of {corpus.samples:,} samples"
    if max(corpus.truncated, corpus.images) > corpus.samples:
        yield f"corpus: {corpus.truncated:,} truncated and {corpus.images:,} with images of {corpus.samples:,} samples"
    if corpus.samples and not corpus.domains:
        yield f"corpus: {corpus.samples:,} samples of no domain"
    whole = SplitInfo(samples=corpus.samples, tokens=corpus.tokens)
    for name, parts in (
        ("calibration and evaluation", (corpus.calibration, corpus.evaluation)),
        ("domains", tuple(corpus.domains.values())),
    ):
        total = SplitInfo(samples=sum(p.samples for p in parts), tokens=sum(p.tokens for p in parts))
        if parts and total != whole:
            yield (
                f"corpus: {whole.tokens:,} tokens of {whole.samples:,} samples, where its {name} hold "
                f"{total.tokens:,} of {total.samples:,}"
            )


def coverage_problems(coverage: Coverage, corpus: CorpusInfo, layers: int) -> Iterator[str]:
    """Where more was measured than there is, or other text. layers: of the model."""
    linears = coverage.linears + len(coverage.unmeasured)
    if coverage.sites > SITES_PER_LINEAR * linears + SITES_PER_LAYER * (layers + 1):
        yield f"coverage: {coverage.sites:,} sites, more than {linears:,} Linears in {layers:,} layers have"
    if coverage.sites_measured > coverage.sites:
        yield f"coverage: {coverage.sites_measured:,} of {coverage.sites:,} sites measured"
    if coverage.linears_measured > coverage.linears:
        yield f"coverage: {coverage.linears_measured:,} of {coverage.linears:,} Linears measured"
    if coverage.tokens != corpus.tokens:
        yield f"coverage: {coverage.tokens:,} tokens, and the corpus holds {corpus.tokens:,}"


def site_problems(sites: Sequence[SiteRow]) -> Iterator[str]:
    """Where the statistics of a tensor cannot be those of one tensor."""
    yield from repeated("sites", (site.name for site in sites))
    for site in sites:
        for problem in _of_one_tensor(site):
            yield f"sites: {site.name}: {problem}"


def scale_problems(scales: Sequence[ScaleRow], sites: Sequence[SiteRow]) -> Iterator[str]:
    """Where a scale cannot be that of its tensor: of a wider range than its values have, or so large that all are 0."""
    amax = {site.name: site.amax for site in sites}
    for row in scales:
        where = f"scales: {row.site} under {row.scheme} ({row.observer})"
        if row.min is None or row.max is None or row.scale is None:
            continue
        reach, peak = max(-row.min, row.max), amax.get(row.site)
        if row.min > row.max:
            yield f"{where}: min {row.min:g} is above max {row.max:g}"
        elif peak is not None and reach > peak * (1 + COARSE):
            yield f"{where}: its range reaches {reach:g}, beyond the tensor's amax {peak:g}"
        elif row.scale > max(reach, LEAST_SCALE):
            yield f"{where}: scale {row.scale:g} is above the largest magnitude of its range, {reach:g}"


def correlation_problems(rows: Sequence[CorrelationRow]) -> Iterator[str]:
    """Intervals of a coefficient that end below where they begin."""
    for row in rows:
        for name in ("spearman", "kendall"):
            low, high = getattr(row, f"{name}_low"), getattr(row, f"{name}_high")
            if low is not None and high is not None and low > high:
                yield f"correlation: {row.predictor} with {row.outcome}: {name}_low {low:g} is above its high {high:g}"


def _of_one_tensor(site: SiteRow) -> Iterator[str]:
    if site.min is not None and site.max is not None:
        if site.min > site.max:
            yield f"min {site.min:g} is above max {site.max:g}"
        elif site.amax is not None and not math.isclose(site.amax, max(-site.min, site.max), rel_tol=COARSE):
            yield f"amax {site.amax:g} is not the larger magnitude of min {site.min:g} and max {site.max:g}"
    quantiles = [value for value in (site.median, site.p99, site.p999, site.p9999) if value is not None]
    if quantiles != sorted(quantiles) or (
        site.amax is not None and max(quantiles, default=0) > site.amax * (1 + COARSE)
    ):
        yield "median, p99, p999, p9999 and amax do not rise"
    if site.rms is not None and site.amax is not None and site.rms > site.amax * (1 + COARSE):
        yield f"rms {site.rms:g} is above amax {site.amax:g}"
    if site.nonfinite + site.massive > site.tokens * site.channels:
        yield f"{site.nonfinite + site.massive:,} of {site.tokens * site.channels:,} values are massive or not finite"
    if site.tokens and site.channels and site.amax is None and not site.nonfinite:
        yield "its amax is not known, although all of its values are finite"
    if site.magnitudes is not None:
        yield from _of_its_values(site, site.magnitudes)


def _of_its_values(site: SiteRow, magnitudes: MagnitudesRow) -> Iterator[str]:
    """Where counts of |x| cannot be those of the tensor: more than it has values, or not up to its amax."""
    values = magnitudes.zeros + magnitudes.below + sum(magnitudes.counts)
    if values + site.nonfinite > site.tokens * site.channels:
        yield f"magnitudes hold {values:,} values, of {site.tokens * site.channels - site.nonfinite:,} finite ones"
    if site.amax:
        # Counted after rounding to 16 bits, which can move the largest value into the next bin.
        last = magnitudes.first + len(magnitudes.counts) - 1
        low, high = (math.log2(site.amax * factor) * magnitudes.parts for factor in (1 - COARSE, 1 + COARSE))
        if not magnitudes.counts[-1] or not math.floor(low) <= last <= math.floor(high):
            yield f"magnitudes end in the bin from {2 ** (last / magnitudes.parts):g}, which does not hold its amax"


def peak_problems(peak: PeakSummary, sites: Sequence[SiteRow]) -> Iterator[str]:
    """Where the highest peaks are not those of the tensors."""
    residual = max((site.amax or 0.0 for site in sites if site.kind in ("residual", "embedding")), default=0.0)
    headroom = FP16_MAX / residual if residual else None
    if (peak.fp16_headroom is None) != (headroom is None) or (
        headroom is not None and not math.isclose(peak.fp16_headroom or 0.0, headroom, rel_tol=CLOSE)
    ):
        yield (
            f"peak.fp16_headroom: {_shown(peak.fp16_headroom)}, where the residual stream's amax makes it "
            f"{_shown(headroom)}"
        )
    highest = max((site.amax or 0.0 for site in sites), default=0.0)
    if peak.overall is not None and not math.isclose(peak.overall.amax or 0.0, highest, rel_tol=CLOSE):
        yield f"peak.overall.amax: {_shown(peak.overall.amax)}, where the highest of the sites is {highest:g}"


def stability_problems(stability: StabilityInfo) -> Iterator[str]:
    """Where a ratio is not that of its two numbers, or more lies beyond than was compared."""
    exceedance = stability.exceedance
    if exceedance.beyond > exceedance.compared:
        yield f"stability.exceedance: {exceedance.beyond:,} beyond of {exceedance.compared:,} compared"
    for row in exceedance.worst:
        if not row.calibration_amax or row.evaluation_amax is None:
            continue
        ratio = row.evaluation_amax / row.calibration_amax
        if row.ratio is None or not math.isclose(row.ratio, ratio, rel_tol=CLOSE):
            yield f"stability.exceedance: {row.site}: ratio {_shown(row.ratio)}, where its amax make it {ratio:g}"


def _shown(value: float | None) -> str:
    return "null" if value is None else f"{value:g}"
