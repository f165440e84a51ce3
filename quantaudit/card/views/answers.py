"""Ten questions that readers ask of a card, each answered in a sentence or two, computed from the card alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from quantaudit.card.schema import Card, SchemeVerdict
from quantaudit.card.text import USUAL_LEVEL, counted, number, percent
from quantaudit.card.views import schemes
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.facts import family, model_argument, report_command
from quantaudit.model.blockwise.memory import size_text
from quantaudit.provenance import ModuleInfo
from quantaudit.quant.weight_bytes import takes_whole_bytes, weight_bytes
from quantaudit.simulate.records import SchemeInfo

_GOOD = ("READY", "READY WITH CARE")
_STORED = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A question, its answer, and the section of the page that says more."""

    question: str
    text: str
    section: str


def answers(view: CardView) -> list[Answer]:
    """All ten, in the order in which they are asked. What a card does not know is said to be unknown."""
    card = view.card
    simulated = "groups" if card.simulation else "coverage"
    verified = "verification" if card.verification else "verdict"
    return [
        Answer(question="Is static quantization safe?", text=_static(view), section="verdict"),
        Answer(question="How sure is that?", text=_certainty(card), section="stability" if card.stability else "peaks"),
        Answer(question="Which layers break, and why?", text=_worst(card), section=simulated),
        Answer(question="What to run instead?", text=_instead(card), section="advice" if card.advice else "verdict"),
        Answer(question="What does it take in bytes?", text=_bytes(card), section="verdict"),
        Answer(question="What was not judged?", text=_not_judged(card), section="coverage"),
        Answer(question="Is the key-value cache safe?", text=_cache(card), section="peaks"),
        Answer(question="How does it compare with its family?", text=_family(card), section="landscape"),
        Answer(question="Was it verified?", text=_verified(card), section=verified),
        Answer(question="How can it be reproduced?", text=_reproduce(card), section="provenance"),
    ]


def _static(view: CardView) -> str:
    card, static = view.card, view.static
    verdict = next((row for row in card.verdict.schemes if static and row.scheme == static.name), None)
    if verdict is None:
        return "Not known: no scheme with fixed activation scales was simulated."
    begin = {"READY": "Yes", "READY WITH CARE": "With care", "NOT READY": "No"}.get(verdict.status, "Not known")
    fixed = schemes.fixed_scales(card)
    others = [
        f"{row.title} is {row.status}"
        for row in card.verdict.schemes
        if row.scheme in fixed and row.status != verdict.status
    ]
    return f"{begin}: {'; '.join([_score(card, verdict), *others])}."


def _score(card: Card, verdict: SchemeVerdict) -> str:
    limits = card.verdict.limits
    if verdict.status == "INCONCLUSIVE" or verdict.kl is None:
        return f"{verdict.title} is {verdict.status}: {verdict.reason}".rstrip(".")
    text = f"{verdict.title} is {verdict.status}, at a KL of {number(verdict.kl, limits.kl)} nats per token"
    if verdict.kl_low is not None:
        text += f" ({number(verdict.kl_low, limits.kl)} to {number(verdict.kl_high, limits.kl)})"
    return f"{text}, with {percent(verdict.top1, limits.top1)} of most likely tokens unchanged"


def _certainty(card: Card) -> str:
    measured = (
        f"{card.coverage.linears_measured:,} of {card.coverage.linears:,} Linears were measured on "
        f"{counted(card.coverage.tokens, 'token')}"
    )
    if card.simulation is None:
        return f"{measured}; no quantization was simulated."
    evaluation = card.simulation.evaluation
    level = card.verdict.limits.level or USUAL_LEVEL
    undecided = [row for row in card.verdict.schemes if row.tokens_to_decide]
    more = "".join(
        f" About {counted(row.tokens_to_decide or 0, 'evaluation token')} would most likely decide {row.title}."
        for row in undecided
    )
    return (
        f"KL is the mean over {counted(evaluation.tokens, 'token')} of {counted(len(evaluation.samples), 'sample')} "
        f"that were not calibrated on, with an interval at {level:.0%}; {measured}.{more}"
    )


def _worst(card: Card) -> str:
    order = ("NOT READY", "READY WITH CARE", "READY")
    rows = [row for row in card.verdict.schemes if row.worst_groups and row.status in order]
    if not rows:
        return "Not known: no quantization was simulated that shows it."
    verdict = min(rows, key=lambda row: order.index(row.status))
    names = ", ".join(f"`{group.group}`" for group in verdict.worst_groups)
    said = f"Under {verdict.title} {names}"
    shares = [group.share for group in verdict.worst_groups if group.share is not None]
    if shares:
        said += f", with {percent(sum(shares))} of what it costs"
    explanation = verdict.worst_groups[0].explanation
    if len(verdict.worst_groups) == 1:
        return f"{said}. {explanation}"
    return f"{said}. Of the first, {explanation[:1].lower()}{explanation[1:]}"


def _instead(card: Card) -> str:
    for status in _GOOD:
        rows = [row for row in card.verdict.schemes if row.status == status and row.kl is not None]
        if rows:
            return f"{'; or '.join(_score(card, row) for row in rows)}."
    met = [row for row in card.advice if row.met and row.advised.kl is not None]
    if met:
        best = min(met, key=lambda row: row.advised.kl or 0.0)
        return f"The recipe that was advised: {counted(len(best.changes), 'change')}, KL {number(best.advised.kl)}."
    if not card.verdict.schemes:
        return "Not known: simulate it with `quantaudit report`."
    return card.verdict.schemes[0].remedy


def _bytes(card: Card) -> str:
    infos = card.simulation.schemes if card.simulation else []
    stored = card.model.parameters * _STORED.get(card.model.dtype, 2)
    by_size: dict[int, list[str]] = {}
    for info in infos:
        size = scheme_bytes(card, info)
        if size is not None:
            by_size.setdefault(size, []).append(info.title)
    parts = [
        f"{size_text(size)} ({percent(size / stored)}) under {' or '.join(titles)}"
        for size, titles in sorted(by_size.items())
    ]
    unquantized = f"Weights take {size_text(stored)} in {card.model.dtype}"
    if not parts:
        return f"{unquantized}; no quantization was simulated."
    note = sizes_note(card)
    return f"{unquantized}; {'; '.join(parts)}." + (f" {note}." if note else "")


def sizes(card: Card) -> dict[str | None, str]:
    """Scheme → bytes of all weights under it, in words, of those that are known; None → unquantized. Empty where no
    scheme's are known."""
    found = {info.name: scheme_bytes(card, info) for info in (card.simulation.schemes if card.simulation else [])}
    known: dict[str | None, str] = {name: size_text(size) for name, size in found.items() if size is not None}
    stored = card.model.parameters * _STORED.get(card.model.dtype, 2)
    return {None: size_text(stored), **known} if known else {}


def sizes_note(card: Card) -> str | None:
    """Why some schemes take more bytes than their bits say, of those whose bytes are known; None where none does."""
    titles = [
        info.title.partition(":")[0]
        for info in (card.simulation.schemes if card.simulation else [])
        if info.weights is not None
        and takes_whole_bytes(info.weights, activations=info.input_activations is not None)
        and scheme_bytes(card, info) is not None
    ]
    if not titles:
        return None
    return f"llm-compressor stores each weight of {' and '.join(titles)} in a whole byte, however few its bits"


def scheme_bytes(card: Card, info: SchemeInfo) -> int | None:
    """Bytes of all weights with the Linears of the decoder blocks quantized under a scheme; None where shapes are not
    known. What is not quantized stays in the model's dtype, as in llm-compressor's checkpoints."""
    if card.simulation is None or info.weights is None:
        return None
    modules: Mapping[str, ModuleInfo] = {module.name: module for module in card.model.modules}
    total = card.model.parameters * _STORED.get(card.model.dtype, 2)
    rows = [row for row in card.simulation.groups if row.scheme == info.name and row.layer is not None]
    if not rows:
        return None
    shapes: Counter[tuple[int, ...]] = Counter()
    for member in {member for row in rows for member in row.members}:
        module = modules.get(member)
        if module is None or module.weight_shape is None:
            return None
        shapes[tuple(module.weight_shape)] += 1
    # A mixture has ten thousands of Linears, of a handful of shapes.
    for shape, count in shapes.items():
        quantized = weight_bytes(shape, info.weights, activations=info.input_activations is not None)
        total += count * (quantized - math.prod(shape) * _STORED.get(card.model.dtype, 2))
    return total


def _not_judged(card: Card) -> str:
    return f"{_sentence(', '.join(_unjudged(card)))}."


def _unjudged(card: Card) -> Iterator[str]:
    yield "your own tasks"
    longest = card.corpus.max_length
    if card.simulation is not None:
        longest = card.simulation.evaluation.max_tokens_per_sample
    yield f"texts longer than {counted(longest, 'token')}"
    yield "quantized caches and attention"
    if card.simulation is None:
        yield "any quantization"
    for recipe in card.simulation.recipes if card.simulation else []:
        yield from recipe.unsimulated
    missing = card.coverage.linears - card.coverage.linears_measured
    if missing:
        yield f"{counted(missing, 'Linear')} that {'was' if missing == 1 else 'were'} not measured"


def _cache(card: Card) -> str:
    return f"Not judged: every simulation keeps keys and values in {card.model.dtype}."


def _family(card: Card) -> str:
    name, peaks = family(card)
    if not card.landscape.published:
        return "Not compared."
    if not peaks:
        return f"{card.landscape.reading} No published model is of its family."
    spread = number(peaks[0]) if len(peaks) == 1 else f"{number(peaks[0])} to {number(peaks[-1])}"
    return f"{card.landscape.reading} Of its family, {name}, {len(peaks):,} are among them: {spread}."


def _verified(card: Card) -> str:
    if not card.verification:
        return (
            f"No: these numbers are simulated. `quantaudit verify RECIPE {model_argument(card)} --card card.json` runs "
            "llm-compressor and compares the checkpoint that it saves."
        )
    parts = []
    for row in card.verification:
        agrees = "cannot be compared" if row.agrees is None else "agrees" if row.agrees else "does not agree"
        parts.append(f"`{row.recipe}`: what llm-compressor saved {agrees}, KL {number(row.actual.kl)}")
    return f"{'; '.join(parts)}."


def _reproduce(card: Card) -> str:
    return (
        f"`{report_command(card)}` with quantaudit {card.quantaudit_version}; "
        f"SHA-256 of the weights `{card.model.fingerprint[:16]}`, of the text `{card.corpus.sha256[:16]}`."
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
