"""Values that options choose from, and their checks: what can be refused before anything heavy is imported."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from typing import Literal, cast, get_args

from quantaudit.errors import UsageError

DTYPES = ("auto", "bfloat16", "float16", "float32")
SCORES = ("auto", "gradient", "damage")
"""Where prices come from: a backward pass, demanded or where it fits, or from damage and a few simulated groups."""
Experts = Literal["auto", "routed", "all"]
"""Which tokens experts are run on: those routed to them, or all, as `oneshot` calibrates them. Under
`auto` those routed to them, and all for experts that saw too few."""
Attention = Literal["auto", "eager", "native"]
"""Attention while measuring: eager, as the model was loaded, or by the length of the longest sample."""
ArithmeticChoice = Literal["auto", "native", "float32"]
"""How products of a 16-bit model are computed on a processor."""
SpecialTokens = Literal["auto", "none"]
"""Which special tokens text is given: as the tokenizer adds them when the model is deployed, or none."""
OBSERVERS = ("absolute_maximum", "absolute_maximum_127", "minmax", "percentile_99.9", "percentile_99.99", "mse")
STATIC_SCHEMES = ("int8_static_per_tensor", "int8_asymmetric_static_per_tensor", "fp8_e4m3_static_per_tensor")
"""Schemes with one fixed scale per tensor, for which scales are derived from a profile."""
SCHEMES = (
    "int8_static_per_tensor",
    "int8_asymmetric_static_per_tensor",
    "int8_dynamic_per_token",
    "int8_asymmetric_dynamic_per_token",
    "int8_weights",
    "fp8_e4m3_static_per_tensor",
    "fp8_e4m3_dynamic_per_token",
    "int4_weights_group_128",
    "int4_weights_group_128_int8_dynamic_per_token",
    "nvfp4",
    "mxfp4",
)
INT8_SCHEMES = ("int8_static_per_tensor", "int8_dynamic_per_token")
STANDARD_SCHEMES = (
    *INT8_SCHEMES,
    "int8_static_per_tensor:minmax",
    "int8_weights",
    "fp8_e4m3_static_per_tensor",
    "fp8_e4m3_dynamic_per_token",
    "int4_weights_group_128",
    "int4_weights_group_128_int8_dynamic_per_token",
    "nvfp4",
    "mxfp4",
)
"""What people ship: simulated by every report unless `--schemes` says otherwise, where they fit the model."""
SCHEME_SETS = {"standard": STANDARD_SCHEMES, "int8": INT8_SCHEMES}
GROUP_SIZES = (128, 64, 32)
"""Of integer weights, the usual one first: those that serving engines have kernels for."""
PRESETS = (
    *("FP8", "FP8_BLOCK", "FP8_DYNAMIC", "INT8", "MXFP4", "MXFP4A16", "MXFP8", "MXFP8A16", "NVFP4", "NVFP4A16"),
    *("W2A16", "W2A4", "W2A8", "W3A16", "W3A4", "W3A8", "W4A16", "W4A16_ASYM", "W4A4", "W4A8", "W4AFP8"),
    *("W5A16", "W5A8", "W6A16", "W6A8", "W7A16", "W7A8", "W8A16", "W8A8"),
)
"""Of compressed_tensors, in upper case; a test holds them equal to its own."""
DEVICES = (
    *("cpu", "cuda", "ipu", "xpu", "mkldnn", "opengl", "opencl", "ideep", "hip", "ve", "fpga", "maia", "xla", "lazy"),
    *("vulkan", "mps", "meta", "hpu", "mtia", "privateuseone"),
)
"""Types that torch.device takes. Plug-ins may add their own."""

MOST_DIGITS = 18
"""Of a whole number that is read from text: more than anything counts up to, and Python refuses thousands."""


def check_count(option: str, value: object, least: int) -> None:
    """Refuse what is no whole number, or too small a one. Raises UsageError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(
            "not a number that can be used", where=f"--{option} {value}", hint=f"give a whole number from {least} on"
        )


def check_choice(option: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices. Raises UsageError."""
    if value not in choices:
        raise UsageError("unknown choice", where=f"--{option} {value}", hint=f"one of {', '.join(choices)}")


def check_text(option: str, value: object) -> None:
    """Refuse what is no text, such as an object that belongs elsewhere. Raises UsageError."""
    if not isinstance(value, str):
        raise UsageError(f"not text, but {type(value).__name__}", where=f"--{option}", hint="give its name")


def check_names(option: str, values: object, kind: type[object]) -> None:
    """Refuse what is no sequence of texts or paths. Raises UsageError."""
    if not isinstance(values, tuple) or not all(isinstance(value, kind) for value in values):
        raise UsageError(f"not a list of {kind.__name__}", where=f"--{option} {values}", hint="give a list")


def parse_dtype(name: str) -> str:
    """Check a dtype name. Raises UsageError."""
    check_text("dtype", name)
    if name not in DTYPES:
        raise UsageError("unknown dtype", where=f"--dtype {name}", hint=f"one of {', '.join(DTYPES)}")
    return name


def check_device(name: str) -> str:
    """Refuse what cannot be a device on any machine; whether it is one here, torch knows. Raises UsageError."""
    check_text("device", name)
    kind, colon, index = name.partition(":")
    plugged = bool(importlib.metadata.entry_points(group="torch.backends"))
    valid = kind in DEVICES or (kind == "auto" and not colon) or (plugged and kind.isidentifier())
    if not valid or (colon and not (index.isascii() and index.isdigit() and len(index) <= MOST_DIGITS)):
        raise UsageError(
            "no such device",
            where=f"--device {name}",
            hint="use auto, cpu, or an accelerator that this build of torch supports, such as cuda",
        )
    if kind == "meta":
        raise UsageError("the meta device holds no values", where="--device meta", hint="use auto, cpu or cuda")
    return name


def parse_price_source(name: str) -> str:
    """Check the name of a score. Raises UsageError."""
    if name not in SCORES:
        raise UsageError("unknown score", where=f"--score {name}", hint=f"one of {', '.join(SCORES)}")
    return name


def find_single(text: str) -> int | None:
    """How many groups are to be simulated alone, None for all. Raises UsageError."""
    check_text("single-groups", text)
    if text == "all":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS):
        raise UsageError(
            "not a number of fused groups", where=f"--single-groups {text}", hint="0 for none, a number, or all"
        )
    return int(text)


def find_experts(name: str) -> Experts:
    """Check what experts are to be run on. Raises UsageError."""
    if name not in get_args(Experts):
        raise UsageError("unknown choice", where=f"--experts {name}", hint=f"one of {', '.join(get_args(Experts))}")
    return cast("Experts", name)


def find_arithmetic(name: str) -> ArithmeticChoice:
    """Check how products are to be computed. Raises UsageError."""
    if name not in get_args(ArithmeticChoice):
        choices = ", ".join(get_args(ArithmeticChoice))
        raise UsageError("unknown choice", where=f"--arithmetic {name}", hint=f"one of {choices}")
    return cast("ArithmeticChoice", name)


def check_observer(name: str, where: str | None = None) -> str:
    """Check an observer's name. Raises UsageError."""
    if name not in OBSERVERS:
        raise UsageError("unknown observer", where=where or f"--observer {name}", hint=f"one of {', '.join(OBSERVERS)}")
    return name


def check_static(name: str) -> str:
    """Check the name of a static per-tensor scheme. Raises UsageError."""
    if name not in STATIC_SCHEMES:
        raise UsageError("unknown scheme", where=f"--scheme {name}", hint=f"one of {', '.join(STATIC_SCHEMES)}")
    return name


def check_scheme(spec: str, option: str = "--scheme") -> str:
    """Check the names in `NAME` or `NAME:OBSERVER`; whether they fit, the scheme itself shows. Raises UsageError."""
    name, _, observer = spec.partition(":")
    if usual_group_size(name) not in SCHEMES and name.upper() not in PRESETS:
        sizes = ", ".join(map(str, GROUP_SIZES))
        sets = f"the set {' or '.join(SCHEME_SETS)}, or " if option == "--schemes" else ""
        raise UsageError(
            "unknown scheme",
            where=f"{option} {spec}",
            hint=f"{sets}one of {', '.join(SCHEMES)} (integer groups of {sizes}), or a preset of compressed-tensors "
            "such as FP8_BLOCK",
        )
    if observer:
        check_observer(observer, where=f"{option} {spec}")
    return spec


def parse_scheme_set(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Schemes of `--schemes`, and which of them are there as part of a set. text: sets and schemes, with commas.

    Raises UsageError.
    """
    check_text("schemes", text)
    names: dict[str, None] = {}
    of_sets: dict[str, None] = {}
    for part in map(str.strip, text.split(",")):
        if part in SCHEME_SETS:
            of_sets |= dict.fromkeys(SCHEME_SETS[part])
            names |= dict.fromkeys(SCHEME_SETS[part])
        else:
            names[check_scheme(part, "--schemes")] = None
    return tuple(names), tuple(of_sets)


def usual_group_size(name: str) -> str:
    """The scheme of whose name this is the one with another of GROUP_SIZES, itself among them; else the name."""
    match = re.fullmatch(r"(.*group_)(\d+)(.*)", name)
    if match is None or match[2] not in map(str, GROUP_SIZES):
        return name
    return f"{match[1]}{GROUP_SIZES[0]}{match[3]}"


def of_any_group_size(name: str) -> str:
    """A scheme's name without the size of its groups, which fits the model."""
    return re.sub(r"group_\d+", "group", name)


def group_size_that_divides(widths: Sequence[int]) -> int | None:
    """The largest usual group size that divides all of these numbers of columns; None where none does."""
    return next((size for size in GROUP_SIZES if not any(width % size for width in widths)), None)
