"""Whether a simulation, and the verdicts on it, can be of the audit that a card is of: what contradicts what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from quantaudit.card.schema.measured import SiteRow
from quantaudit.card.schema.verdict import Verdict, WorstGroup
from quantaudit.provenance import CorpusInfo, ModelInfo
from quantaudit.simulate.records import Evaluation, GroupRow, RecipeRow, Simulation, TensorErrorRow, repeated
from quantaudit.simulate.sensitivity.ranking import weight

CLOSE = 1e-6
"""Relative difference up to which two numbers are one that was computed twice."""
RUN_AGAIN = 0.01
"""The same of a perplexity that two runs computed, with other batches or on another machine."""
LEVELS = 256
"""Codes of eight bits, the widest that activations are simulated in."""
LEAST_SQNR_DB = -20.0
"""Values below half a step round to zero, which is 0 dB, and clipping leaves their sign: real ones are hardly below."""


def simulation_problems(model: ModelInfo, corpus: CorpusInfo, simulation: Simulation) -> Iterator[str]:
    """What a simulation of this model and text says that cannot be of them, or of one run."""
    yield from _evaluation_problems(simulation.evaluation, corpus, simulation.recipes)
    for row in simulation.groups:
        if not _ordered(row.price_low, row.price, row.price_high):
            yield f"simulation.groups: {row.group} under {row.scheme}: its price lies outside of its interval"
        if row.price_simulated and (row.kl is None or row.price is None or not _ordered(row.price, row.kl)):
            yield f"simulation.groups: {row.group} under {row.scheme}: its price is not that of the KL beside it"
    known = {module.name for module in model.modules}
    strange = next((member for row in simulation.groups for member in row.members if member not in known), None)
    if known and strange is not None:
        yield f"simulation.groups: {strange} is no module of the model"
    for error in simulation.sites:
        for problem in _error_problems(error):
            yield f"simulation.sites: {error.site} under {error.scheme} ({error.observer}): {problem}"


def _evaluation_problems(evaluation: Evaluation, corpus: CorpusInfo, recipes: Sequence[RecipeRow]) -> Iterator[str]:
    """Rows of one simulation are of the same tokens; one that was added later may be of others."""
    samples, text = len(evaluation.samples), corpus.evaluation
    if evaluation.tokens > text.tokens:
        yield (
            f"simulation.evaluation: {evaluation.tokens:,} tokens, more than the {text.tokens:,} of the corpus' "
            "evaluation split"
        )
    if samples + (evaluation.left_out or 0) > text.samples:
        yield (
            f"simulation.evaluation: {samples:,} samples, and {evaluation.left_out or 0:,} left out, more than the "
            f"{text.samples:,} of the corpus' evaluation split"
        )
    # A sample with images is not cut within them.
    if not corpus.images and evaluation.tokens > samples * evaluation.max_tokens_per_sample:
        yield (
            f"simulation.evaluation: {evaluation.tokens:,} tokens of {samples:,} samples, of which "
            f"{evaluation.max_tokens_per_sample:,} at most were taken of each"
        )
    if (evaluation.overlapping or 0) > samples:
        yield f"simulation.evaluation: {evaluation.overlapping:,} overlapping of {samples:,} samples"
    if recipes and not any((row.tokens, row.samples) == (evaluation.tokens, samples) for row in recipes):
        yield (
            f"simulation.evaluation: {evaluation.tokens:,} tokens of {samples:,} samples, on which none of its recipes "
            "was simulated"
        )
    same = [row for row in recipes if row.tokens == evaluation.tokens and row.perplexity_base is not None]
    other = next((row for row in same if not _near(row.perplexity_base, same[0].perplexity_base, RUN_AGAIN)), None)
    if other is not None:
        yield (
            f"simulation.recipes: perplexity_base {other.perplexity_base:g} under {other.name}, and "
            f"{same[0].perplexity_base:g} under {same[0].name}, of one model on the same tokens"
        )


def _ordered(*values: float | None) -> bool:
    """Whether those that are known rise, rounding apart."""
    known = [value for value in values if value is not None]
    return all(low <= high or _near(low, high) for low, high in pairwise(known))


def _error_problems(row: TensorErrorRow) -> Iterator[str]:
    """Shares and levels of a tensor are all known, or it holds no finite value and none is."""
    counted = {name: getattr(row, name) for name in ("zeroed_fraction", "effective_levels", "clip_rate")}
    unknown = [name for name, value in counted.items() if value is None]
    if unknown and len(unknown) < len(counted):
        yield f"{' and '.join(unknown)} not known, where {' and '.join(k for k in counted if k not in unknown)} is"
    if not -LEVELS // 2 <= row.zero_point < LEVELS // 2:
        yield f"zero_point {row.zero_point}, which signed integers of eight bits do not hold"
    if row.sqnr_db is not None and row.sqnr_db < LEAST_SQNR_DB:
        yield f"an SQNR of {row.sqnr_db:g} dB, of rounding that is at worst as large as what is rounded"
    levels = row.effective_levels
    if levels is not None and not 1 - CLOSE <= levels <= LEVELS * (1 + CLOSE):
        yield f"{levels:g} effective levels, of {LEVELS} at most"


def verdict_problems(verdict: Verdict, simulation: Simulation | None, sites: Sequence[SiteRow]) -> Iterator[str]:
    """Verdicts on what was not simulated, and worst groups that are not those that hurt most."""
    yield from repeated("verdict.schemes", (row.scheme for row in verdict.schemes))
    simulated = {scheme.name for scheme in simulation.schemes} if simulation is not None else set()
    strange = next((row.scheme for row in verdict.schemes if row.scheme not in simulated), None)
    if strange is not None:
        yield f"verdict.schemes: {strange} was not simulated"
    if simulation is None:
        return
    peaks = {site.name: site.amax for site in sites}
    for scheme in verdict.schemes:
        for name in ("kl", "top1"):
            low, value, high = (getattr(scheme, f"{name}{end}") for end in ("_low", "", "_high"))
            if not _ordered(low, value, high):
                yield f"verdict.schemes: {scheme.scheme}: {name} {value} is not within its interval, {low} to {high}"
        rows = [row for row in simulation.groups if row.scheme == scheme.scheme]
        for problem in _worst_problems(scheme.worst_groups, rows):
            yield f"verdict.schemes: {scheme.scheme}: {problem}"
        for group in scheme.worst_groups:
            peak = peaks.get(f"{group.group}.input")
            if peak is not None and not _near(group.amax, peak):
                yield f"verdict.schemes: {scheme.scheme}: {group.group} has amax {group.amax}, and its site {peak:g}"


def _worst_problems(worst: Sequence[WorstGroup], rows: Sequence[GroupRow]) -> Iterator[str]:
    """Where the groups that explain a verdict are not the first by what they are ranked by, or their shares not those
    of its sum. Cards from before prices ranked have them by damage.
    """
    if not worst:
        return
    by = worst[0].ranked_by
    inside = [row for row in rows if row.layer is not None or by == "damage"]
    known = {row.group: row for row in inside if weight(row, by)}
    total, highest = sum(weight(row, by) for row in inside), max((weight(row, by) for row in inside), default=0.0)
    for group in worst:
        theirs = known.get(group.group)
        if theirs is None or group.ranked_by != by or not _near(weight(group, by), weight(theirs, by)):
            value = None if theirs is None else weight(theirs, by)
            yield f"{group.group} explains it with a {by} of {weight(group, by)}, and was simulated with {value}"
        elif not _near(group.share, weight(theirs, by) / total):
            part = weight(theirs, by) / total
            yield f"{group.group} has a share of {group.share} of {group.share_of}, which makes it {part:g}"
        elif by == "price" and not _near(group.damage, theirs.damage):
            yield f"{group.group} explains it with a damage of {group.damage}, and was simulated with {theirs.damage}"
    if not _near(weight(worst[0], by), highest):
        yield f"{worst[0].group} is named worst, and another group has a {by} of {highest:g}"


def _near(one: float | None, other: float | None, tolerance: float = CLOSE) -> bool:
    """Whether two numbers are one, or both unknown."""
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=tolerance, abs_tol=1e-300)
