"""A comparison of checkpoints in words and tables, which the terminal, the page and Markdown show alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from quantaudit.card.text import ABSENT, count, counted, number, percent, size, visible
from quantaudit.common.outcome import Outcome
from quantaudit.compare.logits.records import ComparedModel, Estimate, LogitsComparison, Pair, Part
from quantaudit.compare.pages import write_texts
from quantaudit.compare.view import NAME, InputView, TableView, View, headline

_ANSWERS: Mapping[Outcome, str] = {
    "pass": "Within every limit.",
    "fail": "Beyond a limit.",
    "inconclusive": "Whether it is beyond a limit cannot be decided.",
}


def to_json(comparison: LogitsComparison) -> str:
    """The whole comparison, for `LogitsComparison.model_validate_json`."""
    return comparison.model_dump_json(indent=1) + "\n"


def write_pages(comparison: LogitsComparison, out: Path) -> list[Path]:
    """Write compare.json, compare.html and compare.md below `out`, as one; the paths. Raises OutputError."""
    return write_texts(out, to_json(comparison), view_of(comparison))


def view_of(comparison: LogitsComparison) -> View:
    """What every form of it shows."""
    labels = [label(model) for model in comparison.models]
    last = f"{len(labels) - 1:,} others" if len(labels) > 2 else labels[1]
    return View(
        kind="Comparison of checkpoints",
        title=f"{labels[0]} → {last}",
        labels=labels,
        headline=headline(comparison.outcome, _ANSWERS),
        reference=f"Every distance is from {labels[0]}." if len(labels) > 2 else None,
        alike="All read the same tokens, and nothing is known that speaks against these numbers.",
        caveats=comparison.caveats,
        decisions=comparison.decisions,
        sentences_title="In words",
        sentences=list(_sentences(comparison)),
        tables=list(_tables(comparison)),
        inputs=[_input(model) for model in comparison.models],
        version=comparison.quantaudit_version,
    )


def label(model: ComparedModel) -> str:
    """A model's name, inert and cut."""
    return visible(model.label, NAME)


def _input(model: ComparedModel) -> InputView:
    notes = "".join(f"; {visible(note, NAME * 2)}" for note in model.notes)
    quantized = f", quantized by {visible(model.quantization, NAME)}" if model.quantization else ""
    text = f"{size(model.parameters)} parameters, {model.dtype}, {model.arithmetic} products{quantized}{notes}"
    return InputView(where=model.where, fingerprint=model.fingerprint, text=text)


def _sentences(comparison: LogitsComparison) -> Iterator[str]:
    text, base = comparison.text, label(comparison.models[0])
    yield (
        f"Means are over {text.tokens:,} held-out tokens of {counted(len(text.samples), 'sample')} "
        f"({visible(text.corpus, NAME)})."
    )
    if comparison.rounding_floor is not None:
        yield (
            f"Noise floor: the least change that the dtype of {base} can hold, at its first block, moves the logits by "
            f"{number(comparison.rounding_floor)} nats per token."
        )
    for pair in comparison.pairs:
        yield from _about(pair, comparison)


def _about(pair: Pair, comparison: LogitsComparison) -> Iterator[str]:
    base, other = label(comparison.models[0]), label(comparison.models[pair.subject])
    mean = pair.kl.mean
    if mean.value is None:
        yield f"{other}: the KL is no number."
        return
    floor = comparison.rounding_floor
    if mean.value == 0 and (pair.kl.by_token is None or not pair.kl.by_token.max):
        note = ": both predict exactly the same"
    elif pair.rounding:
        note = ", which is nothing but rounding: it is not above the noise floor"
    elif floor:
        note = f", {number(mean.value / floor)} times the noise floor"
    else:
        note = ""
    yield f"{other} is {number(mean.value)} nats per token from {base}{note}."
    spread = pair.kl.by_token
    if spread is not None and spread.flipped is not None:
        yield (
            f"At {spread.confident:,} tokens {base} is confident: it gives its most likely next one a probability of "
            f"one half or more. {other} has another one at {percent(spread.flipped)} of them."
        )


def _tables(comparison: LogitsComparison) -> Iterator[TableView]:
    level = percent(comparison.level).replace(".0%", "%")
    many = len(comparison.pairs) > 1
    yield TableView(
        title="Predictions",
        caption=f"In brackets {level} intervals, by the standard error over samples.",
        columns=("model", "perplexity", "× base", "same top-1", "confident changed"),
        rows=[
            [label(comparison.models[0]), number(comparison.perplexity), ABSENT, ABSENT, ABSENT],
            *(_prediction(pair, comparison) for pair in comparison.pairs),
        ],
    )
    for pair in comparison.pairs:
        other = f" of {label(comparison.models[pair.subject])}" if many else ""
        yield TableView(
            title=f"KL{other}",
            caption=f"Nats per token, with {level} intervals of the mean, by the standard error over samples.",
            columns=("over tokens", "KL(base‖other)", "KL(other‖base)"),
            rows=list(_spread_rows(pair)),
        )
        yield TableView(
            title=f"By confidence of the base{other}",
            caption="The base's probability of its most likely token.",
            columns=("probability", "tokens", "KL(base‖other)", "KL(other‖base)", "same top-1"),
            rows=[_part_row(part) for part in pair.confidence],
        )
        yield TableView(
            title=f"By domain{other}",
            caption="± is a standard error over samples.",
            columns=("domain", "tokens", "KL(base‖other)", "KL(other‖base)", "same top-1"),
            rows=[_part_row(part) for part in pair.domains],
        )


def _prediction(pair: Pair, comparison: LogitsComparison) -> list[str]:
    flipped = None if pair.kl.by_token is None else pair.kl.by_token.flipped
    return [
        label(comparison.models[pair.subject]),
        number(pair.perplexity),
        _ends(pair.perplexity_ratio, _ratio),
        _ends(pair.top1, percent),
        percent(flipped),
    ]


def _spread_rows(pair: Pair) -> Iterator[list[str]]:
    sides = (pair.kl, pair.reverse)
    yield ["mean", *(_ends(side.mean, number) for side in sides)]
    for name, field in (("median", "median"), ("90 % below", "p90"), ("99 % below", "p99"), ("maximum", "max")):
        values = [None if side.by_token is None else getattr(side.by_token, field) for side in sides]
        yield [name, *map(number, values)]


def _ends(estimate: Estimate, show: Callable[[float | None], str]) -> str:
    """The mean with its interval."""
    if estimate.low is None or estimate.high is None:
        return show(estimate.value)
    return f"{show(estimate.value)} ({show(estimate.low)} to {show(estimate.high)})"


def _ratio(value: float | None) -> str:
    """A ratio of perplexities, which mostly lies within a few hundredths of one."""
    return f"{value:.4f}" if value is not None and 0.1 <= value < 10 else number(value)


def _part_row(part: Part) -> list[str]:
    score = part.score
    return [
        visible(part.name, NAME),
        count(score.tokens),
        _with_error(score.kl, score.kl_stderr),
        _with_error(part.reverse_kl, part.reverse_kl_stderr),
        percent(score.top1),
    ]


def _with_error(value: float | None, stderr: float | None) -> str:
    return number(value) if value is None or stderr is None else f"{number(value)} ± {number(stderr)}"
