"""What serving engines make of a model's Linears: which ones they run as one, and which ones they build unquantized.

The one table of it, read from vLLM 0.33.0; every row names its file below `vllm/`. Names are those of transformers, as
they stand on a card.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedLinears:
    """Linears of one parent that the engine runs as one, under one scheme.

    name: of the fused Linear. members: last parts of the paths, in the order in which they are stacked; two of them are
    enough. source: file whose `packed_modules_mapping`, or stacked parameters, have it. model_types: where it is only
    so in some architectures.
    """

    name: str
    members: tuple[str, ...]
    source: str
    model_types: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltUnquantized:
    """Linears that the engine builds without a quantization method, so that quantized tensors of theirs do not load.

    path: regular expression that the whole module path must match. sibling: name of a sibling of the module, or of its
    parent, without which the row does not hold. fp8_weights: whether FP8 weights are dequantized on loading.
    """

    what: str
    path: str
    source: str
    model_types: frozenset[str] | None = None
    sibling: str | None = None
    fp8_weights: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    """A part of a module path that the engine calls otherwise; regular expressions of a recipe are not translated."""

    pattern: str
    replacement: str
    source: str
    model_types: frozenset[str] | None = None


_MODELS = "model_executor/models"
_LINEAR_ATTENTION = frozenset({"kimi_linear"})
_MULTIMODAL_SOURCE = f"{_MODELS}/qwen2_vl.py: hf_to_vllm_mapper"

FUSED_LINEARS: tuple[FusedLinears, ...] = (
    # Longer rows first: a shorter one with some of the same members must not take their place.
    FusedLinears(
        name="in_proj_qkvgfab",
        members=("q_proj", "k_proj", "v_proj", "b_proj", "f_a_proj"),
        source="model_executor/layers/mamba/gdn/kimi_gdn_linear_attn.py",
        model_types=_LINEAR_ATTENTION,
    ),
    FusedLinears(
        name="in_proj_qkvg",
        members=("q_proj", "k_proj", "v_proj", "g_proj"),
        source=f"{_MODELS}/olmo_hybrid.py",
        model_types=frozenset({"olmo_hybrid"}),
    ),
    FusedLinears(name="qkv_proj", members=("q_proj", "k_proj", "v_proj"), source=f"{_MODELS}/llama.py"),
    FusedLinears(name="gate_up_proj", members=("gate_proj", "up_proj"), source=f"{_MODELS}/llama.py"),
    FusedLinears(name="w13", members=("w1", "w3"), source=f"{_MODELS}/lfm2.py"),
    FusedLinears(name="gate_up_proj", members=("c_fc_0", "c_fc_1"), source=f"{_MODELS}/exaone.py"),
    FusedLinears(
        name="fused_qkv_a_proj", members=("q_a_proj", "kv_a_proj_with_mqa"), source=f"{_MODELS}/deepseek_v2.py"
    ),
    FusedLinears(
        name="fused_wqa_wkv",
        members=("q_a_proj", "kv_proj"),
        source="models/deepseek_v4/nvidia/model.py",
        model_types=frozenset({"deepseek_v4"}),
    ),
    FusedLinears(name="wk_weights_proj", members=("wk", "weights_proj"), source=f"{_MODELS}/deepseek_v2.py"),
    FusedLinears(name="in_proj_qkvz", members=("in_proj_qkv", "in_proj_z"), source=f"{_MODELS}/qwen3_5.py"),
    FusedLinears(name="in_proj_ba", members=("in_proj_b", "in_proj_a"), source=f"{_MODELS}/qwen3_5.py"),
)
"""Linears that the engine runs as one. What the checkpoint holds as one already (Phi-3's `qkv_proj`, Qwen3-Next's
`in_proj_qkvz`, Mamba-2's `in_proj`) is one Linear, and needs no row."""

# All projections of a layer's routed experts are held to one scheme, and that of the first expert is read, in
# model_executor/layers/quantization/compressed_tensors/compressed_tensors_moe/compressed_tensors_moe.py.

BUILT_UNQUANTIZED: tuple[BuiltUnquantized, ...] = (
    BuiltUnquantized(
        what="the gate of a shared expert",
        path=r"(.*\.)?shared_expert_gate",
        source=f"{_MODELS}/qwen2_moe.py",
    ),
    BuiltUnquantized(
        what="a router",
        path=r"(.*\.)?(gate|router)(\.(layer|classifier|proj|linear|wg|gate))?",
        source="model_executor/layers/fused_moe/router/gate_linear.py",
        sibling="experts",
    ),
    BuiltUnquantized(
        what="a sparse indexer's keys and head weights",
        path=r".*\.indexer\.(wk|weights_proj)",
        source=f"{_MODELS}/deepseek_v2.py",
        fp8_weights=True,
    ),
    BuiltUnquantized(
        what="a projection of a Mamba-1 mixer",
        path=r".*\.(mixer|mamba)\.(in_proj|x_proj|dt_proj|out_proj)",
        source="model_executor/layers/mamba/mamba_mixer.py",
        model_types=frozenset({"mamba", "falcon_mamba", "jamba"}),
    ),
)
"""Linears that the engine builds unquantized, by what they are for."""

RENAMED: tuple[Renamed, ...] = (
    Renamed(pattern=r"^model\.language_model\.", replacement="language_model.model.", source=_MULTIMODAL_SOURCE),
    Renamed(
        pattern=r"^(model\.layers\.\d+)\.mlp\.",
        replacement=r"\1.block_sparse_moe.",
        source=f"{_MODELS}/mixtral.py",
        model_types=frozenset({"mixtral"}),
    ),
    Renamed(
        pattern=r"^(.*\.block_sparse_moe\.experts\.\d+)\.gate_proj$",
        replacement=r"\1.w1",
        source=f"{_MODELS}/mixtral.py",
        model_types=frozenset({"mixtral"}),
    ),
    Renamed(
        pattern=r"^(.*\.block_sparse_moe\.experts\.\d+)\.down_proj$",
        replacement=r"\1.w2",
        source=f"{_MODELS}/mixtral.py",
        model_types=frozenset({"mixtral"}),
    ),
    Renamed(
        pattern=r"^(.*\.block_sparse_moe\.experts\.\d+)\.up_proj$",
        replacement=r"\1.w3",
        source=f"{_MODELS}/mixtral.py",
        model_types=frozenset({"mixtral"}),
    ),
)
"""Names that differ between transformers and the engine, applied in this order."""


def fuse(names: Sequence[str], model_type: str | None = None) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(parent, fused name, last names of the members) of every group among Linears given by path, in their order.

    A Linear that is fused with none is a group of its own, under its own name. model_type: of the model, for rows that
    hold in some architectures only; without it these do not hold.
    """
    rows = [row for row in FUSED_LINEARS if row.model_types is None or model_type in row.model_types]
    present = set(names)
    done: set[str] = set()
    for name in names:
        if name in done:
            continue
        parent, _, leaf = name.rpartition(".")
        prefix = f"{parent}." if parent else ""
        projection: str = leaf
        leaves: tuple[str, ...] = (leaf,)
        for row in rows:
            if leaf in row.members:
                present_members = tuple(member for member in row.members if f"{prefix}{member}" in present)
                if len(present_members) > 1:
                    projection, leaves = row.name, present_members
                    break
        done.update(f"{prefix}{leaf}" for leaf in leaves)
        yield parent, projection, leaves


def built_unquantized(path: str, siblings: Collection[str], model_type: str | None) -> BuiltUnquantized | None:
    """The row by which the engine builds a Linear unquantized, if there is one.

    siblings: names of the modules next to it, and of those next to its parent.
    """
    for row, pattern in _unquantized():
        if row.model_types is not None and model_type not in row.model_types:
            continue
        if row.sibling is not None and row.sibling not in siblings:
            continue
        if pattern.fullmatch(path):
            return row
    return None


def engine_name(path: str, model_type: str | None) -> str:
    """What the engine calls a module."""
    for row in RENAMED:
        if row.model_types is None or model_type in row.model_types:
            path = re.sub(row.pattern, row.replacement, path)
    return path


@cache
def _unquantized() -> tuple[tuple[BuiltUnquantized, re.Pattern[str]], ...]:
    return tuple((row, re.compile(row.path)) for row in BUILT_UNQUANTIZED)
