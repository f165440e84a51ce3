"""What an artifact holds, whichever library wrote it. Magnitudes are in the units of the tensor that is quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from compressed_tensors.config import CompressionFormat
    from compressed_tensors.quantization import QuantizationScheme

    from quantaudit.conform.artifacts.tensors import TensorSource
    from quantaudit.conform.configuration import Configuration
    from quantaudit.conform.contract import ExpectedTensor, Form
    from quantaudit.provenance import ModuleInfo, WeightSketch


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRange:
    """The static range that a Linear's input is quantized over: the grid's ends, low ≤ x ≤ high; the rest is clipped.

    scale, zero_point: as stored. epsilons: values that are written where calibration saw nothing, such as the eps of
    the scale's dtype. tensor: the name under which the file holds it. factors: float64 [channels], what the artifact
    multiplies each channel by before it quantizes (SmoothQuant); low and high are then ends of the product.
    averages: whether its observer averages over calibration batches or searches for the least error, and so clips.
    """

    module: str
    tensor: str
    scale: float
    zero_point: float
    low: float
    high: float
    epsilons: tuple[float, ...]
    factors: NDArray[np.float64] | None = None
    averages: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherScale:
    """Any other scale: of a weight, an output, a cache. Exponents are decoded.

    values: float64, flat. idle: bool, the same shape: entries whose quantized values are all zero, so that they scale
    nothing and may hold anything finite.
    """

    module: str
    tensor: str
    values: NDArray[np.float64]
    idle: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A tensor that the artifact's own configuration calls for, and that is not there."""

    module: str
    tensor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightContents:
    """What a quantized weight holds. tensor: its codes.

    lowest, highest: codes before the zero point is taken off; first, last: ends of the grid that the scheme has.
    nonfinite: codes that are NaN. constant: whether all are stored as the same bits. reach: the median over groups that
    are not idle of the largest code's distance from
    the zero point, over that of the grid's end. gain: rms of the dequantized weight times √in: what it multiplies a
    white input by. None where its scales do not fit its codes. edged: share of groups whose zero point is an end of
    the grid, None where it has none. level: whether all zero points are stored as the same bits. full: share of groups
    whose largest code is the end of the grid, where the scale is chosen so that it is: of 8-bit codes by channel, and
    under a global scale. local_peak: the largest scale of a group under a global scale. sketch: of the weight that it
    dequantizes to. rounding: what rounding to these codes at these scales is expected to take, over the norm of the
    weight.
    """

    module: str
    tensor: str
    bits: int
    lowest: float
    highest: float
    first: float
    last: float
    nonfinite: int
    constant: bool
    reach: float | None = None
    full: float | None = None
    level: bool = False
    gain: float | None = None
    edged: float | None = None
    local_peak: float | None = None
    sketch: WeightSketch | None = None
    rounding: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseContents:
    """What an unquantized tensor holds. gain: rms · √(last size) of a matrix, rms of a vector."""

    module: str
    tensor: str
    matrix: bool
    count: int
    nonfinite: int
    constant: bool
    zero: bool
    gain: float
    sketch: WeightSketch | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedModule:
    """A module that the configuration quantizes. forms: leaf → what it must be stored as; empty where impossible.

    saved: its name in the files. shape: of its weight. problem: why it cannot be stored so, if it cannot.
    """

    module: str
    saved: str
    group: str
    scheme: QuantizationScheme
    format: CompressionFormat
    shape: tuple[int, ...]
    forms: Mapping[str, Form]
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint of compressed-tensors, with its contract.

    config: its config.json. saved: module on the card → name in the files. expected: name → tensor that must be there.
    optional: names that need not be. tied: whether it ties its embeddings. lost: tensors that the index of the shards
    names and no shard holds. strays: tensors that no module of the model has.
    """

    tensors: TensorSource
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    configuration: Configuration
    modules: Mapping[str, ModuleInfo]
    saved: Mapping[str, str]
    quantized: Mapping[str, QuantizedModule]
    expected: Mapping[str, ExpectedTensor]
    optional: frozenset[str]
    tied: bool
    lost: tuple[str, ...]
    strays: tuple[str, ...] = ()
    weights: list[WeightContents] = field(default_factory=list)
    dense: list[DenseContents] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFiles:
    """What a folder holds in addition to weights; None where it holds no such file.

    generation: settings of the generation config. tokenizer: part → SHA-256; template: SHA-256 of the chat template.
    problem: why the tokenizer cannot be loaded, where it cannot. damaged: whether nobody can load it, rather than that
    this machine lacks what it needs.
    """

    generation: Mapping[str, Any] | None = None
    tokenizer: Mapping[str, str] | None = None
    template: str | None = None
    problem: str | None = None
    damaged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A quantized model on disk. weights: module → [out, in], empty where the format packs them without saying.

    dynamic: Linears whose input is quantized with scales that are computed as the model runs. checkpoint: where the
    whole contract is known. config: its config.json, where it has one. side: what lies next to the weights, where that
    was read.
    """

    kind: str
    path: str
    weights: dict[str, tuple[int, ...]]
    inputs: list[InputRange]
    others: list[OtherScale] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    dynamic: list[str] = field(default_factory=list)
    checkpoint: Checkpoint | None = None
    config: Mapping[str, Any] | None = None
    side: SideFiles | None = None
