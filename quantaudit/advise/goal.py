"""The goal of advice, and what advice may offer. Imports no torch: what is no goal is refused at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from quantaudit.advise.scheme_names import kl_of_scheme
from quantaudit.common.choices import check_scheme
from quantaudit.errors import UsageError
from quantaudit.simulate.records import Simulation

REFERENCES = ("dynamic",)
"""Options that are simulated everywhere, to compare with; other names are those of a card's schemes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What KL is acceptable: nats per token, those of a uniform alternative (`dynamic`), or those of a scheme in all
    groups, as a card simulated it.
    """

    max_kl: float | None = None
    as_good_as: str | None = None

    def __post_init__(self) -> None:
        if (self.max_kl is None) == (self.as_good_as is None):
            raise UsageError("one goal is needed", where="--max-kl, --as-good-as", hint="--as-good-as dynamic")
        if self.max_kl is not None and not 0 < self.max_kl < math.inf:
            raise UsageError("a KL budget is above zero, and finite", where="--max-kl", hint="--max-kl 0.05")
        if self.as_good_as is not None and self.as_good_as not in REFERENCES:
            check_scheme(self.as_good_as, "--as-good-as")

    def scheme_kl(self, simulation: Simulation | None) -> float | None:
        """The KL of the scheme that it names, None where it names none. simulation: the card's.

        Raises UsageError where that has no KL of it.
        """
        if self.as_good_as is None or self.as_good_as in REFERENCES:
            return None
        if simulation is None:
            raise UsageError(
                "no such alternative, and there is no simulation with the KL of a scheme of this name",
                where=f"--as-good-as {self.as_good_as}",
                hint=f"one of {', '.join(REFERENCES)}, or give --max-kl",
            )
        return kl_of_scheme(self.as_good_as, simulation)

    def __str__(self) -> str:
        return f"KL at most {self.max_kl:g}" if self.max_kl is not None else f"as good as {self.as_good_as} everywhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    """What may be done to a fused group instead of what its recipe does.

    moving_averages: llm-compressor's `minmax` observer, whose ranges depend on the order of samples. unquantized: to
    leave it out, which not every engine runs next to quantized groups. Both on request alone: an engineer would not
    merge them unasked. smoothing: SmoothQuant, where it reaches; costs passes over the calibration samples.
    """

    moving_averages: bool = False
    unquantized: bool = False
    smoothing: bool = True
