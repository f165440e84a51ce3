"""The answer in a sentence or two, in plain words: what to run, what costs a little, what breaks and where."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from quantaudit.card.schema import SchemeVerdict, SiteRow
from quantaudit.policy import Status
from quantaudit.simulate.records import SchemeInfo

MANY = 6
"""Schemes of one status up to which each is named; beyond, they are counted."""
_FIXED = "with one fixed scale for each tensor"
_TOKEN = "with a scale for each token"
_NAMED_FORMATS = {("tensor_group", 16): "NVFP4", ("group", 32): "MXFP4"}
"""Four-bit floats by strategy and group size."""


def headline(verdicts: Sequence[SchemeVerdict], infos: Sequence[SchemeInfo], sites: Mapping[str, SiteRow]) -> str:
    """What becomes of the model under each scheme, best first, and where the first that breaks it does so.

    infos: of the schemes of the verdicts. sites: by name; that of a group's input shows at which token it peaks.
    """
    names = _distinct(verdicts, {info.name: plain_name(info) for info in infos})
    by_status: dict[Status, list[SchemeVerdict]] = {}
    for verdict in verdicts:
        by_status.setdefault(verdict.status, []).append(verdict)

    def listed(status: Status, joint: str) -> str:
        return _listed([names[v.scheme] for v in by_status[status]], joint)

    sentences = []
    if "READY" in by_status:
        sentences.append(f"Run it as {listed('READY', 'or')}.")
    if "READY WITH CARE" in by_status:
        begin = "With care" if sentences else "It runs with care"
        sentences.append(f"{begin}: {listed('READY WITH CARE', 'or')}.")
    if "NOT READY" in by_status:
        broken = by_status["NOT READY"]
        verb = "break" if len(broken) > 1 else "breaks"
        sentences.append(f"{_capital(listed('NOT READY', 'and'))} {verb} it{_where(broken, names, sites)}.")
    if "INCONCLUSIVE" in by_status:
        sentences.append(f"Undecided: {listed('INCONCLUSIVE', 'and')}.")
    return " ".join(sentences)


def plain_name(info: SchemeInfo) -> tuple[str, str]:
    """A scheme in words that need no glossary: its format, and how activations are scaled; that may be empty.

    Of a scheme of another kind than the usual ones, its title.
    """
    weights, inputs = info.weights or {}, info.input_activations
    if not weights:
        return info.title, ""
    four_bit_float = _NAMED_FORMATS.get((str(weights.get("strategy")), int(weights.get("group_size") or 0)))
    number = _format(weights)
    if number == "FP4" and inputs is not None:
        return four_bit_float or info.title, ""
    bits = weights.get("num_bits", 8)
    if inputs is None:
        return f"W{bits}A16 ({number} weights alone)", ""
    if _format(inputs) != number:
        return f"W{bits}A{inputs.get('num_bits', 8)}", ""
    dynamic, strategy = inputs.get("dynamic", False) is True, inputs.get("strategy")
    if dynamic and strategy == "token":
        return number, _TOKEN
    if not dynamic and strategy in (None, "tensor"):
        return number, _FIXED
    return info.title, ""


def _distinct(verdicts: Sequence[SchemeVerdict], names: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Names by scheme: titles where schemes of one plain name come to different ends, as two observers may."""
    plain = {verdict.scheme: names.get(verdict.scheme, (verdict.title, "")) for verdict in verdicts}
    ends: dict[tuple[str, str], set[Status]] = {}
    for verdict in verdicts:
        ends.setdefault(plain[verdict.scheme], set()).add(verdict.status)
    return {v.scheme: plain[v.scheme] if len(ends[plain[v.scheme]]) == 1 else (v.title, "") for v in verdicts}


def _format(args: Mapping[str, object]) -> str:
    return f"{'FP' if args.get('type') == 'float' else 'INT'}{args.get('num_bits', 8)}"


def _listed(names: Iterable[tuple[str, str]], joint: str) -> str:
    """`INT8 and FP8 with a scale for each token, or W4A8`: formats that are scaled alike together, each once."""
    every = list(names)
    unique = list(dict.fromkeys(every))
    if len(unique) > MANY:
        return f"{'any of ' if joint == 'or' else ''}{len(every)} schemes"
    phrases: dict[tuple[str, str], list[str]] = {}
    for number, how in unique:
        phrases.setdefault((how, "" if how else number), []).append(number)
    said = [f"{_joined(numbers, joint)} {how}".rstrip() for (how, _), numbers in phrases.items()]
    return _joined(said, joint)


def _joined(items: Sequence[str], joint: str) -> str:
    if len(items) < 2:
        return "".join(items)
    comma = "," if any(" " in item for item in items) else ""
    return f"{', '.join(items[:-1])}{comma} {joint} {items[-1]}"


def _where(broken: Sequence[SchemeVerdict], names: Mapping[str, tuple[str, str]], sites: Mapping[str, SiteRow]) -> str:
    """The groups at which the first that has any breaks, and whether their inputs peak on the first token."""
    located = next((verdict for verdict in broken if verdict.worst_groups), None)
    if located is None:
        return ""
    groups = located.worst_groups
    peaks = [site.peaks[0].position for group in groups if (site := sites.get(f"{group.group}.input")) and site.peaks]
    on_first = len(peaks) == len(groups) and not any(peaks) and None not in peaks
    whose = f", {'whose input peaks' if len(groups) == 1 else 'whose inputs peak'} on the first token"
    at = f"at {_joined([f'`{group.group}`' for group in groups], 'and')}{whose if on_first else ''}"
    if len(broken) == 1:
        return f", first {at}"
    return f". {_capital(_listed([names[located.scheme]], 'and'))} does so {at}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
