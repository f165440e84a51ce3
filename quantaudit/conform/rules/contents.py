"""Rules about what tensors hold: codes, zero points, and weights next to those of other layers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from statistics import median

from quantaudit.card.schema import Finding
from quantaudit.conform.artifacts.records import Checkpoint, DenseContents, WeightContents
from quantaudit.conform.artifacts.tensors import values
from quantaudit.conform.contract import GROUP_INDEX
from quantaudit.conform.rules.catalogue import finding
from quantaudit.provenance import ModuleInfo

GAIN = 30.0
"""rms · √in of a weight above which it is none that a model learned: 1 keeps the size of what it reads, and trained
Linears lie between 0.1 and 5."""
ABSURD_GAIN = 1000.0
LAYERS = 10.0
"""Factor between the gains of one weight in different layers, above the usual."""
QUIET = 1e-4
"""The same from below."""
INITIAL = (0.0, 1.0)
"""What norms and biases are before they are trained."""
REACH = 0.25
"""Share of the grid that the largest code of a group reaches at least: every observer lets it reach the end, but for
scales that are powers of two, which may take half."""
FULL_GROUPS = 0.9
"""Share of groups whose largest code is the end of the grid: all, after rounding to nearest; of a transposed matrix
63 % of channels, the share of columns that some row's largest value falls into, and 87 % of NVFP4's groups."""
LOCAL_PEAK = 100.0
"""Smallest largest scale of groups under a global scale, which is chosen so that it is 448."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def contents(checkpoint: Checkpoint) -> list[Finding]:
    """QA603, QA612, QA614, QA615, QA616 and QA623 for what is stored in the right form."""
    findings: list[Finding] = []
    shared = _local_peaks(checkpoint)
    for row in checkpoint.weights:
        findings += _codes(row)
        if row.local_peak is not None and shared[row.module] < LOCAL_PEAK and row.gain:
            findings.append(_unfilled(row, shared[row.module]))
    findings += _gains([(row.module, row.tensor, row.gain) for row in checkpoint.weights if row.gain is not None])
    for dense in checkpoint.dense:
        findings += _plain(dense)
    matrices = [(row.module, row.tensor, row.gain) for row in checkpoint.dense if row.matrix and not row.nonfinite]
    findings += _gains(matrices)
    findings += _vectors([row for row in checkpoint.dense if not row.matrix], checkpoint.modules)
    return [*findings, *_described(checkpoint)]


def _codes(row: WeightContents) -> Iterator[Finding]:
    if row.nonfinite:
        yield finding("QA616", row.module, f"`{row.tensor}` holds {row.nonfinite:,} NaN", value=float(row.nonfinite))
        return
    if row.constant or row.lowest == row.highest:
        yield finding("QA614", row.module, f"all codes of `{row.tensor}` are equal")
        return
    if row.lowest < row.first or row.highest > row.last:
        yield finding(
            "QA615",
            row.module,
            f"codes of `{row.tensor}` go from {row.lowest:g} to {row.highest:g}, those of {row.bits} bits from "
            f"{row.first:g} to {row.last:g}",
        )
    elif row.reach is not None and row.reach < REACH:
        yield finding(
            "QA615",
            row.module,
            f"codes of `{row.tensor}` use {row.reach:.2g} of the grid of {row.bits} bits, where every observer reaches "
            "its end",
            severity="warning",
            value=row.reach,
            threshold=REACH,
        )
    elif row.full is not None and row.full < FULL_GROUPS:
        yield finding(
            "QA615",
            row.module,
            f"only {row.full:.0%} of the groups of `{row.tensor}` reach the end of the grid, as if it were transposed",
            severity="warning",
            value=row.full,
            threshold=FULL_GROUPS,
        )
    if row.level:
        yield finding(
            "QA614", row.module, f"all values of `{row.tensor.rpartition('.')[0]}.weight_zero_point` are equal"
        )
    elif row.edged is not None and row.edged > 0.5:
        yield finding(
            "QA615",
            row.module,
            f"{row.edged:.0%} of the zero points of `{row.tensor.rpartition('.')[0]}.weight_zero_point` are an end of "
            "the grid",
            value=row.edged,
            threshold=0.5,
        )


def _unfilled(row: WeightContents, peak: float) -> Finding:
    name = row.tensor.rpartition(".")[0]
    return finding(
        "QA603",
        row.module,
        f"the largest value of `{name}.weight_scale` is {peak:.3g}, where the global scale is chosen to make it 448",
        value=peak,
        threshold=LOCAL_PEAK,
    )


def _local_peaks(checkpoint: Checkpoint) -> Mapping[str, float]:
    """Module → largest local scale among the modules that share its parent, which may share a global scale."""
    peaks: dict[str, float] = {}
    parents: dict[str, float] = {}
    for row in checkpoint.weights:
        if row.local_peak is not None:
            parent = row.module.rpartition(".")[0]
            parents[parent] = max(parents.get(parent, 0.0), row.local_peak)
            peaks[row.module] = row.local_peak
    return {
        name: peak if peak >= LOCAL_PEAK or not _shares(name, peaks) else parents[name.rpartition(".")[0]]
        for name, peak in peaks.items()
    }


def _shares(name: str, rows: Mapping[str, float]) -> bool:
    parent = name.rpartition(".")[0]
    return any(other != name and other.rpartition(".")[0] == parent for other in rows)


def _gains(rows: Iterable[tuple[str, str, float]]) -> Iterator[Finding]:
    """Weights that amplify absurdly, or unlike the same weight of other layers."""
    roles: dict[str, list[tuple[str, str, float]]] = {}
    for row in rows:
        roles.setdefault(_NUMBER.sub("*", row[0]), []).append(row)
    for peers in roles.values():
        for module, tensor, gain in peers:
            others = [other for name, _, other in peers if name != module and other > 0]
            usual = median(others) if others else None
            if gain > GAIN:
                yield finding(
                    "QA603" if gain > ABSURD_GAIN else "QA623",
                    module,
                    f"`{tensor}` and its scales come to weights that multiply a white input by {gain:.3g}",
                    value=gain,
                    threshold=ABSURD_GAIN if gain > ABSURD_GAIN else GAIN,
                )
            elif usual is not None and gain > LAYERS * usual:
                yield _unlike(module, tensor, gain, usual, LAYERS)
            elif usual is not None and 0 < gain < QUIET * usual:
                yield _unlike(module, tensor, gain, usual, QUIET)


def _unlike(module: str, tensor: str, gain: float, usual: float, limit: float) -> Finding:
    return finding(
        "QA623",
        module,
        f"`{tensor}` has {gain / usual:.3g} times the magnitude of the same weight in other layers",
        value=gain / usual,
        threshold=limit,
    )


def _plain(row: DenseContents) -> Iterator[Finding]:
    if row.nonfinite:
        yield finding(
            "QA616", row.module, f"`{row.tensor}` holds {row.nonfinite:,} NaN or infinite values", value=row.nonfinite
        )
    elif row.constant and row.matrix:
        yield finding("QA614", row.module, f"all {row.count:,} values of `{row.tensor}` are equal")


def _vectors(rows: Iterable[DenseContents], modules: Mapping[str, ModuleInfo]) -> Iterator[Finding]:
    """Norms and biases next to those of the other layers; a norm without such next to all other norms of its class."""
    roles: dict[str, list[DenseContents]] = {}
    classes: dict[str, list[DenseContents]] = {}
    for row in rows:
        roles.setdefault(_NUMBER.sub("*", row.tensor), []).append(row)
        if row.tensor.endswith(".weight"):
            classes.setdefault(modules[row.module].classes[0], []).append(row)
    for members in roles.values():
        for row in members:
            alone = len(members) == 1 and row.tensor.endswith(".weight")
            peers = classes[modules[row.module].classes[0]] if alone else members
            others = [other for other in peers if other is not row and not other.nonfinite]
            alive = [other.gain for other in others if not other.zero]
            if row.zero and others and len(alive) == len(others) and row.count > 1:
                yield finding(
                    "QA614", row.module, f"all {row.count:,} values of `{row.tensor}` are zero, as of no other layer"
                )
            elif row.constant and row.gain not in INITIAL and others and not any(other.constant for other in others):
                yield finding(
                    "QA614", row.module, f"all {row.count:,} values of `{row.tensor}` are equal, as of no other layer"
                )
            elif alive and not row.nonfinite and not row.zero and row.gain > 100 * median(alive):
                yield _unlike(row.module, row.tensor, row.gain, median(alive), 100)


def _described(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Tensors that describe others: the shape of a packed weight, and the group of each column."""
    for module in checkpoint.quantized.values():
        shape = f"{module.saved}.weight_shape"
        if "weight_shape" in module.forms and shape in checkpoint.tensors:
            stored = [int(size) for size in values(checkpoint.tensors, shape)]
            if stored != list(module.shape):
                yield finding("QA612", module.module, f"`{shape}` says {stored}, the model has {list(module.shape)}")
        index = f"{module.saved}.{GROUP_INDEX}"
        if GROUP_INDEX in module.forms and index in checkpoint.tensors:
            groups = module.forms["weight_scale"].shape[-1]
            indices = values(checkpoint.tensors, index)
            if len(indices) and (
                indices.min() < 0 or indices.max() >= groups or (groups > 1 and indices.min() == indices.max())
            ):
                yield finding(
                    "QA615",
                    module.module,
                    f"`{index}` assigns columns to the groups {indices.min():g} to {indices.max():g} of {groups}",
                )
