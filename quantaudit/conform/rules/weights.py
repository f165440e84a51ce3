"""QA627: the weights of an artifact next to what the card keeps of the model's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from quantaudit.card.schema import Card, Finding
from quantaudit.card.text import counted
from quantaudit.conform.artifacts.records import Checkpoint
from quantaudit.conform.rotations import rotations
from quantaudit.conform.rules.catalogue import finding
from quantaudit.conform.rules.rounding import Change, difference_limit, moved_factors, ratio_limit, together
from quantaudit.model.weight_sketch import correlation, difference
from quantaudit.provenance import WeightSketch

PLAIN = 0.1
"""Relative difference of an unquantized tensor, which should be none: another float type and what is kept allow a tenth
of it."""
RMS = 0.02
"""And of its rms, which is kept to seven digits."""
NOISE = {8: 0.05, 4: 0.2, 3: 0.35, 2: 0.8}
"""Relative difference of a weight and its codes of so many bits or more."""
COMPENSATED = 0.3
"""How much of a norm's change is found in the Linears that read it, at least, where one makes up for the other."""
QUANTIZED = 0.6
"""Of a quantized one, whatever its rounding takes (rules/rounding.py); unrelated weights come to √2 ± 0.25."""
FACTOR = 1.6
"""And the largest between their rms: a part of a weight may be dead, or in groups that are as good as that."""
FEW_BITS = 3
"""Bits up to which so much of a weight is lost that only its direction and size are compared."""
DIRECTION = 0.4
"""Their least correlation: 0.7 after rounding to two bits, 0 ± 0.25 of unrelated weights."""
SIZE = 2.0
"""And the largest factor between their rms: 1.1 of two bits."""
ALIKE = 0.2
"""Mean correlation of a layer's weights, under SmoothQuant or AWQ, which multiply their columns: 0.4 and more where
they are the model's, 0 ± 0.1 where they are not."""
_LAYER = re.compile(r"^(.*\.\d+)\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """One weight in the artifact and on the card. bits, group: None where it is not quantized.

    rounding: what rounding takes of it, over its norm; None where that is not known.
    """

    module: str
    tensor: str
    ours: WeightSketch
    card: WeightSketch
    bits: int | None
    group: str | None = None
    rounding: float | None = None

    @property
    def difference(self) -> float:
        return difference(self.card, self.ours)

    @property
    def limit(self) -> float:
        if self.bits is None:
            return PLAIN
        return QUANTIZED if self.rounded is None else min(QUANTIZED, difference_limit([self.rounded]))

    @property
    def rounded(self) -> Change | None:
        """Of a quantized weight, next to what rounding takes of it; None where that is not known."""
        if self.rounding is None or not (self.card.rms and self.ours.rms):
            return None
        ratio = math.log(self.ours.rms / self.card.rms)
        return Change(difference=self.difference, log_ratio=ratio, rounding=self.rounding)

    @property
    def scaled(self) -> bool:
        """Whether its size is another than rounding makes it."""
        change = self.rounded
        return change is not None and abs(change.log_ratio) > ratio_limit([change])

    @property
    def change(self) -> float:
        """Relative difference of a quantized weight, beyond what its bits make of it."""
        noise = next((value for bits, value in NOISE.items() if (self.bits or 0) >= bits), 1.0)
        return math.sqrt(max(self.difference**2 - noise**2, 0.0))

    @property
    def shift(self) -> float:
        """Change of a norm's factors; some models add 1 to what is stored, and others store what is near it."""
        return self.difference * self.card.rms / max(self.card.rms, 1.0) if self.card.rms else self.ours.rms

    @property
    def unexplained(self) -> bool:
        """Whether it differs by more than rounding takes: another weight, or the card's with dead rows or groups."""
        wide = self.bits is not None and self.bits > FEW_BITS and self.difference > self.limit
        return wide or self.other or self.scaled

    @property
    def other(self) -> bool:
        """Whether it is another weight than the card's, and not the card's with some dead rows or small groups."""
        if self.bits is None and self.card.rms and abs(self.ours.rms / self.card.rms - 1) > RMS:
            return True
        if self.bits is None:
            return self.difference > PLAIN
        if self.bits > FEW_BITS:
            factor = 0.0 if self.rounded is None else abs(self.rounded.log_ratio)
            return self.difference > QUANTIZED or factor > math.log(FACTOR)
        alike = self.card.rms <= SIZE * self.ours.rms and self.ours.rms <= SIZE * self.card.rms
        return not alike or (self.card.rms > 0 and correlation(self.card, self.ours) < DIRECTION)


def weights(checkpoint: Checkpoint, card: Card) -> list[Finding]:
    """QA627 and QA628. What a modifier may have changed is compared as far as what it does allows."""
    kept = card.model.weights
    if kept is None:
        return [finding("QA628", None, "its weights cannot be compared: the card does not hold any of the model's")]
    pairs = list(_pairs(checkpoint, kept))
    settings = checkpoint.settings.get("transform_config")
    if settings:
        found = rotations(settings, checkpoint.modules)
        if found is None:
            return [
                finding("QA627", None, "its transform_config is not one of compressed-tensors"),
                *_others(pairs, kept),
            ]
        if rotated := found.keys():
            # Norms before a rotation are multiplied into the weights that follow.
            rest = [pair for pair in pairs if pair.module not in rotated and not _is_norm(checkpoint, pair)]
            return [_incomparable(len(rotated & {pair.module for pair in pairs})), *_others(rest, kept)]
    return _with_smoothing(checkpoint, pairs, kept)


def _with_smoothing(checkpoint: Checkpoint, pairs: list[_Pair], kept: Mapping[str, WeightSketch]) -> list[Finding]:
    """SmoothQuant and AWQ divide channels of a layer's norm, or of a Linear, and multiply columns of what reads them.

    So a layer is smoothed where a norm of it changed, and its Linears as much. Where more than a quarter is, Linears of
    all layers are alike, not equal (AWQ may leave a norm as it is, and change what follows a Linear). All else is the
    model's as it was.
    """
    layers: dict[str, list[_Pair]] = {}
    for pair in pairs:
        if match := _LAYER.match(pair.module):
            layers.setdefault(match[1], []).append(pair)
    smoothed = {layer for layer, members in layers.items() if _is_smoothed(checkpoint, members)}
    if len(smoothed) * 4 <= len(layers):
        return _others(pairs, kept)
    alike = [
        pair
        for layer, members in layers.items()
        for pair in members
        if layer in smoothed or not _is_norm(checkpoint, pair)
    ]
    chosen = {id(pair) for pair in alike}
    found = _others([pair for pair in pairs if id(pair) not in chosen], kept)
    unlike = [row for layer, members in layers.items() for row in _unlike(checkpoint, layer, members, chosen)]
    what = f"norms and Linears of {len(smoothed):,} of {len(layers):,} layers changed together"
    return [_transformed(f"{what}, as under SmoothQuant and AWQ"), *found, *unlike]


def _is_smoothed(checkpoint: Checkpoint, members: list[_Pair]) -> bool:
    norms = [pair for pair in members if pair.bits is None and _is_norm(checkpoint, pair) and pair.other]
    linears = [pair.change for pair in members if pair.bits is not None]
    return bool(norms and linears) and max(linears) >= COMPENSATED * min(1.0, max(pair.shift for pair in norms))


def _others(pairs: list[_Pair], kept: Mapping[str, WeightSketch]) -> list[Finding]:
    """Single weights, and schemes whose weights are off together: of those, only what is far off is named too."""
    changes = {pair.module: change for pair in pairs if pair.difference <= QUANTIZED and (change := pair.rounded)}
    moved = moved_factors(changes, {pair.module for pair in pairs if pair.unexplained})
    rest = [pair for pair in pairs if pair.module not in moved]
    common, said = _common(rest), []
    if moved and not common:
        said = [_transformed(f"{counted(len(moved) // 2, 'pair')} of Linears changed together, as under AWQ")]
        pairs = rest
    elif moved:
        common = _common(pairs) or common
    other = [pair for pair in pairs if pair.other and (pair.group not in common or pair.difference > QUANTIZED)]
    return [*said, *common.values(), *(_another(pair, pairs, kept) for pair in other)]


def _common(pairs: list[_Pair]) -> dict[str | None, Finding]:
    """By group of the configuration. Weights far off are named by themselves, and others where they are the fewer."""
    groups: dict[str | None, list[_Pair]] = {}
    for pair in pairs:
        if pair.group is not None and pair.rounded is not None and pair.difference <= QUANTIZED:
            groups.setdefault(pair.group, []).append(pair)
    found: dict[str | None, Finding] = {}
    for group, members in groups.items():
        rest = [pair for pair in members if not pair.unexplained]
        counted_in = rest if 2 * len(rest) > len(members) else members
        rows = [(pair.module, change) for pair in counted_in if (change := pair.rounded) is not None]
        if (row := together(f"group `{group}`", rows)) is not None:
            found[group] = row
    return found


def _pairs(checkpoint: Checkpoint, kept: Mapping[str, WeightSketch]) -> Iterator[_Pair]:
    for row in checkpoint.weights:
        known = kept.get(f"{row.module}.weight") or _tied(checkpoint, row.module, kept)
        if row.sketch is not None and known is not None:
            group = checkpoint.quantized[row.module].group
            yield _Pair(
                module=row.module,
                tensor=row.tensor,
                ours=row.sketch,
                card=known,
                bits=row.bits,
                group=group,
                rounding=row.rounding,
            )
    for dense in checkpoint.dense:
        leaf = dense.tensor.rpartition(".")[2]
        known = kept.get(f"{dense.module}.{leaf}") or _tied(checkpoint, dense.module, kept)
        if dense.sketch is not None and known is not None:
            yield _Pair(module=dense.module, tensor=dense.tensor, ours=dense.sketch, card=known, bits=None)


def _tied(checkpoint: Checkpoint, module: str, kept: Mapping[str, WeightSketch]) -> WeightSketch | None:
    """Of a head that the card's model shares with its input embedding."""
    if module.rpartition(".")[2] != "lm_head":
        return None
    embeddings = [name for name, info in checkpoint.modules.items() if "Embedding" in info.classes]
    shape = checkpoint.modules[module].weight_shape if module in checkpoint.modules else None
    alike = [name for name in embeddings if checkpoint.modules[name].weight_shape == shape]
    return kept.get(f"{alike[0]}.weight") if len(alike) == 1 else None


def _is_norm(checkpoint: Checkpoint, pair: _Pair) -> bool:
    return "norm" in checkpoint.modules[pair.module].classes[0].lower() if pair.module in checkpoint.modules else False


def _another(pair: _Pair, pairs: list[_Pair], kept: Mapping[str, WeightSketch]) -> Finding:
    path = f"{pair.module}.{pair.tensor.rpartition('.')[2]}" if pair.bits is None else f"{pair.module}.weight"
    same_role = re.sub(r"\.\d+\.", ".*.", path)
    twins = [
        name
        for name, sketch in kept.items()
        if name != path
        and re.sub(r"\.\d+\.", ".*.", name) == same_role
        and difference(sketch, pair.ours) < pair.limit / 2
    ]
    what = f"it is `{twins[0]}` of the model" if len(twins) == 1 else "the model's weight is another"
    if pair.rounded is not None and pair.difference <= QUANTIZED and not twins:
        rounding = f"rounding explains {pair.limit:.2g} and {ratio_limit([pair.rounded]):.1%}"
        size = f"its rms is {pair.ours.rms / pair.card.rms:.3g} of that one's"
        text = f"`{pair.tensor}` differs by {pair.difference:.2g} of its norm from the card's, and {size}: {rounding}"
        return finding("QA627", pair.module, text, value=pair.difference, threshold=pair.limit)
    size = "beyond all measure" if math.isinf(pair.difference) else f"by {pair.difference:.2g} of its norm"
    return finding(
        "QA627",
        pair.module,
        f"`{pair.tensor}` differs {size} from the card's: {what}",
        value=pair.difference,
        threshold=pair.limit,
    )


def _unlike(checkpoint: Checkpoint, layer: str, members: list[_Pair], chosen: set[int]) -> Iterator[Finding]:
    """A layer whose Linears are not even alike, and single weights that are not, of those that were chosen."""
    linears = [pair for pair in members if pair.bits is not None]
    if not linears:
        return
    mean = fmean(correlation(pair.card, pair.ours) for pair in linears)
    if mean < ALIKE:
        yield _uncorrelated(layer, f"the quantized weights of `{layer}`", mean, ALIKE)
        return
    for pair in members:
        if _is_norm(checkpoint, pair):  # of which some models store what is to be added to 1: not even signs stay
            continue
        # Signs stay; a single weight whose columns were multiplied may be far from what it was.
        limit = ALIKE if pair.bits is None and pair.tensor.endswith(".weight") else -ALIKE
        if id(pair) in chosen and (value := correlation(pair.card, pair.ours)) < limit:
            yield _uncorrelated(pair.module, f"`{pair.tensor}`", value, limit)


def _uncorrelated(module: str, what: str, value: float, limit: float) -> Finding:
    return finding(
        "QA627",
        module,
        f"{what} has a correlation of {value:.2g} with the card's: it is another",
        value=value,
        threshold=limit,
    )


def _incomparable(count: int) -> Finding:
    return finding(
        "QA628",
        None,
        f"{counted(count, 'weight')} cannot be compared with the card's: transform_config says they are rotated",
        why="A rotation changes weights, not what the model computes; other weights would look alike.",
        remedy="`quantaudit verify` runs the recipe again, and compares what comes of it.",
    )


def _transformed(what: str) -> Finding:
    return finding(
        "QA627",
        None,
        f"{what}: their weights are held to be like the card's, not equal to them",
        severity="info",
        why="Smoothing changes weights without changing what the model computes.",
        remedy="Nothing to do; `quantaudit verify` runs the recipe again and compares what comes of it.",
    )
