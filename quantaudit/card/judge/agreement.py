"""Whether the scores of a card agree with themselves and with its verdicts, as clauses; empty where they do."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

from quantaudit.card.schema import Card, SchemeVerdict
from quantaudit.provenance import ModuleInfo
from quantaudit.simulate.records import DomainScore, RecipeRow, Simulation

CLOSE, ROUNDED = 1e-6, 1e-7
"""Relative, and absolute, difference up to which two scores are one that was summed in two ways."""
LEAST_SPREAD = 1e-9
"""Standard error over a KL, below which its samples were all of one text."""


def self_contradictions(card: Card, measured: RecipeRow | None = None) -> list[str]:
    """What of a card cannot be of one run. measured: another score of a recipe on it, if any."""
    rows = list(card.simulation.recipes) if card.simulation is not None else []
    if measured is not None and measured not in rows:
        rows.append(measured)
    problems = [f"{row.name}: {text}" for row in rows for text in score_problems(row, redacted=card.corpus.redacted)]
    return [
        *problems,
        *verdict_differences(card),
        *_unlisted(card),
        *_other_tokens(card),
        *_copies(card),
        *_model_problems(card),
        *(_price_problems(card.simulation) if card.simulation is not None else ()),
    ]


def _unlisted(card: Card) -> Iterator[str]:
    """That Linears were not measured, more than are listed as such; those that one split lacks altogether are not."""
    missing, listed = card.coverage.linears - card.coverage.linears_measured, len(card.coverage.unmeasured)
    if missing > listed and card.corpus.calibration.tokens and card.corpus.evaluation.tokens:
        yield f"its coverage has {missing:,} Linears not measured, and {listed:,} modules listed as such"


def _copies(card: Card) -> Iterator[str]:
    """Samples that repeat others, where no finding says so, or more were evaluated than are left without them.

    Of a split's samples that are alike the first repeats none: of those that repeat, as many as can calibrate.
    """
    corpus, evaluation = card.corpus, card.simulation.evaluation if card.simulation is not None else None
    overlapping, repeated = corpus.overlapping or 0, corpus.repeated or 0
    if (overlapping or repeated) and not any(finding.code == "QA113" for finding in card.findings):
        yield f"{overlapping:,} samples calibrate too and {repeated:,} repeat others, which its findings do not say"
    if evaluation is None or evaluation.overlapping or not (overlapping or repeated):
        return
    others = max(repeated - max(corpus.calibration.samples - 1, 0), 0)
    own = max(corpus.evaluation.samples - overlapping - others, 0)
    if len(evaluation.samples) > own:
        yield (
            f"{len(evaluation.samples):,} samples were evaluated as no copies, and its corpus leaves {own:,} of "
            f"{corpus.evaluation.samples:,} that are none"
        )


def _other_tokens(card: Card) -> Iterator[str]:
    """Residual streams of other text: they have a row for every token of it, or several where layers share a block.

    Other tensors may have fewer rows, or others: experts those routed to them, a vision tower patches.
    """
    tokens = card.corpus.tokens
    for site in card.sites:
        if site.kind in ("residual", "embedding") and site.tokens and (not tokens or site.tokens % tokens):
            yield f"{site.name} has {site.tokens:,} tokens, and the corpus {tokens:,}"


def score_problems(row: RecipeRow, *, redacted: bool) -> Iterator[str]:
    """What in the score of a recipe cannot be of one run, as clauses. redacted: whether domains may be left out."""
    if row.kl is not None and row.top1 is None:
        yield "its KL is known, and top-1 is not"
    if row.kl and row.samples > 1 and row.kl_stderr is not None and row.kl_stderr < LEAST_SPREAD * row.kl:
        yield f"a standard error of {row.kl_stderr:g} over {row.samples:,} samples"
    scores = list(row.domains.values())
    held = sum(score.tokens for score in scores)
    if held > row.tokens or (held < row.tokens and not redacted):
        yield f"{row.tokens:,} tokens, where its domains hold {held:,}"
        return
    samples = [score.samples for score in scores if score.samples is not None]
    if held < row.tokens or not held:
        return
    if len(samples) == len(scores) and sum(samples) != row.samples:
        yield f"{row.samples:,} samples, where its domains hold {sum(samples):,}"
        return
    yield from _mean_problems("KL", row, row.kl, [score.kl for score in scores], row.kl_stderr)
    yield from _mean_problems("top-1", row, row.top1, [score.top1 for score in scores], row.top1_stderr)
    yield from _error_problems("KL", row, row.kl, row.kl_stderr, [(s, s.kl, s.kl_stderr) for s in scores])
    yield from _error_problems("top-1", row, row.top1, row.top1_stderr, [(s, s.top1, s.top1_stderr) for s in scores])


def _mean_problems(
    name: str, row: RecipeRow, whole: float | None, parts: list[float | None], stderr: float | None
) -> Iterator[str]:
    """A mean that is not that of its domains, or whose standard error is smaller than they allow.

    With n_d tokens of m_d samples in domain d, and R_d and R the means, the spread between samples Σ (s − n·R)² is at
    least Σ_d n_d²·(R_d − R)² / m_d, by Cauchy and Schwarz within each domain.
    """
    known = [part for part in parts if part is not None]
    if whole is None or len(known) < len(parts):
        if whole is not None:
            yield f"its {name} is known, and that of a domain is not"
        return
    scores = list(row.domains.values())
    mean = sum(part * score.tokens for part, score in zip(known, scores, strict=True)) / row.tokens
    if not math.isclose(mean, whole, rel_tol=CLOSE, abs_tol=ROUNDED):
        yield f"{name} {whole:.6g}, where its domains make it {mean:.6g}"
    if stderr is None or row.samples < 2 or any(not score.samples for score in scores):
        return
    spread = sum(
        (score.tokens * (part - mean)) ** 2 / (score.samples or 1) for part, score in zip(known, scores, strict=True)
    )
    least = math.sqrt(spread * row.samples / (row.samples - 1)) / row.tokens
    if stderr < least * (1 - CLOSE) - ROUNDED:
        yield f"a standard error of {name} of {stderr:.3g}, where its domains alone make it {least:.3g}"


Part = tuple[DomainScore, float | None, float | None]
"""The score of a domain, with one mean of it and the standard error of that."""


def _error_problems(
    name: str, row: RecipeRow, whole: float | None, stderr: float | None, parts: Sequence[Part]
) -> Iterator[str]:
    """Standard errors of domains that cannot be of the samples that the whole is of.

    Of a domain, let A be the norm over its samples of s − n·R, with R the whole's mean, and B that of s − n·R_d, with
    its own: |A − B| is at most |R_d − R| times the norm of n, which is at most its sum. And Σ A² over domains is the
    spread of the whole.
    """
    known = [(s, mean, error) for s, mean, error in parts if mean is not None and (error is not None or s.samples == 1)]
    if whole is None or stderr is None or row.samples < 2 or len(known) < len(parts):
        return
    low = high = 0.0
    for score, mean, error in known:
        count = score.samples or 0
        own = (error or 0.0) * score.tokens * math.sqrt((count - 1) / count) if count else 0.0
        shift = abs(mean - whole) * score.tokens
        low, high = low + max(0.0, own - shift) ** 2, high + (own + shift) ** 2
    spread = stderr * row.tokens * math.sqrt((row.samples - 1) / row.samples)
    slack = ROUNDED * row.tokens
    if not math.sqrt(low) * (1 - CLOSE) - slack <= spread <= math.sqrt(high) * (1 + CLOSE) + slack:
        yield f"a standard error of {name} of {stderr:.3g}, which those of its domains cannot make"


def verdict_differences(card: Card) -> Iterator[str]:
    """Verdicts whose numbers are not those of their scheme's recipe, or whose status is better than their limits."""
    rows = {row.name: row for row in card.simulation.recipes} if card.simulation is not None else {}
    for verdict in card.verdict.schemes:
        yield from _other_numbers(verdict, rows.get(verdict.scheme))
        if verdict.status in PASSING and len(card.verdict.limits.kl) == len(card.verdict.limits.top1) == 2:
            side = PASSING.index(verdict.status)
            kl, top1 = card.verdict.limits.kl[side], card.verdict.limits.top1[side]
            if verdict.kl is None or verdict.top1 is None or verdict.kl > kl or verdict.top1 < top1:
                yield f"{verdict.title} is {verdict.status} beyond the limits that it names"


def _price_problems(simulation: Simulation) -> Iterator[str]:
    """KLs that neither prices nor rounding allow. What prices sum to may be anything once a recipe breaks a model."""
    floor, schemes = simulation.evaluation.rounding_floor or 0.0, {scheme.name for scheme in simulation.schemes}
    for row in simulation.recipes:
        if not row.kl or row.nonfinite:
            continue
        if row.name in schemes and row.kl < floor / BEYOND_ROUNDING:
            yield f"{row.name}: a KL of {row.kl:.3g}, where rounding at the first block alone makes {floor:.3g}"
        estimate, least = row.kl_estimate, max(floor, LEAST_KL)
        if estimate is None or min(row.kl, estimate) > BROKEN_KL:
            continue
        low, high = sorted((max(row.kl, least), max(estimate, least)))
        if high > BEYOND_ESTIMATE * low:
            yield f"{row.name}: a KL of {row.kl:.3g}, which its prices estimate as {estimate:.3g}"


BEYOND_ROUNDING = 10.0
"""How often the rounding floor exceeds a KL of a scheme on all blocks, at most: real ones are above it."""
BEYOND_ESTIMATE = 100.0
"""Largest ratio of a KL and its estimate; of real ones they are within a factor of three."""
LEAST_KL, BROKEN_KL = 1e-4, 1.0
"""Nats per token: below, and beyond, of which estimates say little."""


def _model_problems(card: Card) -> Iterator[str]:
    """Sizes of a model that its modules and tensors do not have."""
    model = card.model
    digests = "".join(model.files[path] for path in sorted(model.files))
    if digests and model.fingerprint != hashlib.sha256(digests.encode()).hexdigest():
        yield "a fingerprint that is not that of its weight files"
    last = max((site.layer for site in card.sites if site.layer is not None), default=-1)
    if last >= model.layers:
        yield f"it has {model.layers:,} layers, and tensors of layer {last:,}"
    matrices = [module.weight_shape for module in model.modules if module.weight_shape and len(module.weight_shape) > 1]
    if matrices and not any(model.hidden_size in shape for shape in matrices):
        yield f"a hidden size of {model.hidden_size:,}, which no weight has"
    if max(map(math.prod, matrices), default=0) > model.parameters:
        yield f"{model.parameters:,} parameters, and a weight of more"
    rows = [module.weight_shape[0] for module in model.modules if module.weight_shape and _embeds(module)]
    if rows and not any(model.vocab_size <= count <= MORE_ROWS * model.vocab_size + PADDED for count in rows):
        yield f"a vocabulary of {model.vocab_size:,}, and embeddings of {max(rows):,}"


def _embeds(module: ModuleInfo) -> bool:
    return "Embedding" in module.classes


MORE_ROWS, PADDED = 1.25, 256
"""Embeddings may have more rows than a vocabulary has tokens: for later ones, or a round number."""

PASSING = ("READY", "READY WITH CARE")


def _other_numbers(verdict: SchemeVerdict, row: RecipeRow | None) -> Iterator[str]:
    names = {"kl": "KL", "top1": "top-1", "perplexity": "perplexity", "perplexity_base": "perplexity before"}
    for field, name in names.items():
        ours, theirs = getattr(verdict, field), None if row is None else getattr(row, field)
        if ours is None and theirs is None:
            continue
        if ours is None or theirs is None or not math.isclose(ours, theirs, rel_tol=CLOSE):
            yield f"the verdict of {verdict.title} has another {name} ({ours}) than its simulation ({theirs})"
