"""QA627: the weights of an artifact next to what the card keeps of the model's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import fmean

from quantaudit.card.schema import Card, Finding
from quantaudit.conform.artifacts.records import Checkpoint
from quantaudit.conform.rules.catalogue import finding
from quantaudit.model.weight_sketch import correlation, difference
from quantaudit.provenance import WeightSketch

PLAIN = 0.1
"""Relative difference of an unquantized tensor, which should be none: another float type and what is kept allow a tenth
of it."""
QUANTIZED = 0.6
"""Of a quantized one: four bits in groups come to 0.1, GPTQ's to 0.2; unrelated weights to √2 ± 0.25."""
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
    """One weight in the artifact and on the card. bits: None where it is not quantized."""

    module: str
    tensor: str
    ours: WeightSketch
    card: WeightSketch
    bits: int | None

    @property
    def difference(self) -> float:
        return difference(self.card, self.ours)

    @property
    def limit(self) -> float:
        return PLAIN if self.bits is None else QUANTIZED

    @property
    def other(self) -> bool:
        """Whether it is another weight than the card's."""
        if self.bits is None or self.bits > FEW_BITS:
            return self.difference > self.limit
        alike = self.card.rms <= SIZE * self.ours.rms and self.ours.rms <= SIZE * self.card.rms
        return not alike or (self.card.rms > 0 and correlation(self.card, self.ours) < DIRECTION)


def weights(checkpoint: Checkpoint, card: Card) -> list[Finding]:
    """QA627 and QA628. Weights that were smoothed before they were quantized are compared layer by layer."""
    kept = card.model.weights
    if kept is None:
        return [finding("QA628", None, "its weights cannot be compared: the card does not hold any of the model's")]
    pairs = list(_pairs(checkpoint, kept))
    settings = checkpoint.settings.get("transform_config")
    if settings:
        return [_transformed("transform_config says that its weights were rotated")]
    norms = [pair for pair in pairs if pair.bits is None and _LAYER.match(pair.module) and _is_norm(checkpoint, pair)]
    changed = [pair for pair in norms if pair.other]
    if len(changed) * 4 > len(norms):
        what = (
            f"{len(changed):,} of {len(norms):,} norms of its layers are others than the card's, as SmoothQuant and AWQ"
        )
        return [_transformed(f"{what} leave them"), *_unlike_layers(pairs)]
    return [_another(pair, pairs, kept) for pair in pairs if pair.other]


def _pairs(checkpoint: Checkpoint, kept: Mapping[str, WeightSketch]) -> Iterator[_Pair]:
    for row in checkpoint.weights:
        known = kept.get(f"{row.module}.weight") or _tied(checkpoint, row.module, kept)
        if row.sketch is not None and known is not None:
            yield _Pair(module=row.module, tensor=row.tensor, ours=row.sketch, card=known, bits=row.bits)
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
    size = "beyond all measure" if math.isinf(pair.difference) else f"by {pair.difference:.2g} of its norm"
    return finding(
        "QA627",
        pair.module,
        f"`{pair.tensor}` differs {size} from the card's: {what}",
        value=pair.difference,
        threshold=pair.limit,
    )


def _unlike_layers(pairs: list[_Pair]) -> Iterator[Finding]:
    """Layers whose Linears are not even alike."""
    layers: dict[str, list[_Pair]] = {}
    for pair in pairs:
        if pair.bits is not None and (match := _LAYER.match(pair.module)):
            layers.setdefault(match[1], []).append(pair)
    for layer, members in layers.items():
        mean = fmean(correlation(pair.card, pair.ours) for pair in members)
        if mean < ALIKE:
            yield finding(
                "QA627",
                layer,
                f"the quantized weights of `{layer}` have a correlation of {mean:.2g} with the card's: they are others",
                value=mean,
                threshold=ALIKE,
            )


def _transformed(what: str) -> Finding:
    return finding(
        "QA627",
        None,
        f"{what}: single weights are not compared with the card's",
        severity="info",
        why="Smoothing and rotations change weights without changing what the model computes.",
        remedy="Nothing to do; `quantaudit verify` runs the recipe again and compares what comes of it.",
    )
