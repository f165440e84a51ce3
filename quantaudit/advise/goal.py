"""What advice is to reach, and what it may offer. Imports no torch: a goal that is none is refused at once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantaudit.errors import UsageError

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

REFERENCES = ("dynamic",)
"""Options that are simulated everywhere, to compare with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What KL is acceptable, nats per token: a number, or that of a uniform alternative (`dynamic`)."""

    max_kl: float | None = None
    as_good_as: str | None = None

    def __post_init__(self) -> None:
        if (self.max_kl is None) == (self.as_good_as is None):
            raise UsageError("one goal is needed", where="--max-kl, --as-good-as", hint="--as-good-as dynamic")
        if self.max_kl is not None and not 0 < self.max_kl < math.inf:
            raise UsageError("a KL budget is above zero, and finite", where="--max-kl", hint="--max-kl 0.05")
        if self.as_good_as is not None and self.as_good_as not in REFERENCES:
            raise UsageError(
                "no such alternative", where=f"--as-good-as {self.as_good_as}", hint=f"one of {', '.join(REFERENCES)}"
            )

    def check(self, schemes: Iterable[QuantizationScheme]) -> None:
        """Raises UsageError where a recipe's schemes have no such alternative, before anything is priced."""
        from quantaudit.advise.options import menu

        name = self.as_good_as
        if name is None:
            return
        for scheme in {id(scheme): scheme for scheme in schemes}.values():
            if not any(option.answers(name) for option in menu(scheme)):
                raise UsageError(
                    f"inputs that this recipe leaves alone, or quantizes to another format than 8 bits, have no "
                    f"alternative `{name}`",
                    where="--as-good-as",
                    hint="give --max-kl, such as --max-kl 0.05",
                )

    def __str__(self) -> str:
        return f"KL at most {self.max_kl:g}" if self.max_kl is not None else f"as good as {self.as_good_as} everywhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """What may be done to a fused group instead of what its recipe does.

    moving_averages: llm-compressor's `minmax` observer, whose ranges depend on the order of samples. unquantized: to
    leave it out. smoothing: SmoothQuant, where it reaches; costs passes over the calibration samples.
    """

    moving_averages: bool = True
    unquantized: bool = True
    smoothing: bool = True
