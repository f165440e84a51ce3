"""A budget of bytes, compute or KL. Imports no torch: mistakes are refused at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

from quantaudit.advise.scheme_names import kl_of_scheme
from quantaudit.common.rounding import limit_number
from quantaudit.errors import UsageError
from quantaudit.policy import Policy
from quantaudit.simulate.allocation import Limit, Menu, size_of_bits
from quantaudit.simulate.allocation.solve import Cost
from quantaudit.simulate.records import Simulation

READY, CARE = "ready", "care"
COSTS: tuple[Cost, ...] = get_args(Cost)
OPTIONS = "--max-bits, --max-bytes, --max-kl, --as-good-as, --verdict, --max-compute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What an allocation of schemes may cost: one of these. Raises UsageError for none, several, or what is no budget.

    max_bits: for each quantizable weight, scales included. max_bytes: of all weights of the checkpoint. max_kl: the
    estimate, nats per token. as_good_as: name of a scheme, in all groups of which the card has a KL that is not to be
    exceeded. verdict: `ready` or `care`, the policy's limit that the estimate's interval lies below. Besides, or alone,
    max_compute: time of multiply-accumulates on the hardware, as a share of the unquantized model's. minimize: `bytes`
    or `compute`, what is kept low within a budget of KL.
    """

    max_bits: float | None = None
    max_bytes: int | None = None
    max_kl: float | None = None
    as_good_as: str | None = None
    verdict: str | None = None
    max_compute: float | None = None
    minimize: Cost = "bytes"

    def __post_init__(self) -> None:
        sizes = [self.max_bits, self.max_bytes]
        given = 5 - [*sizes, self.max_kl, self.as_good_as, self.verdict].count(None)
        if given > 1 or (not given and self.max_compute is None):
            raise UsageError(
                "one budget is needed, and no more",
                where=OPTIONS,
                hint="such as --max-bits 5.5, or --verdict ready; --max-compute may go with another",
            )
        for option, value, usual in (
            ("--max-bits", self.max_bits, "5.5"),
            ("--max-bytes", self.max_bytes, "9GiB"),
            ("--max-kl", self.max_kl, "0.05"),
            ("--max-compute", self.max_compute, "0.6"),
        ):
            if value is not None and not 0 < value < math.inf:
                raise UsageError("a budget is above zero, and finite", where=option, hint=f"such as {option} {usual}")
        if self.verdict not in (None, READY, CARE):
            raise UsageError("no such verdict", where=f"--verdict {self.verdict}", hint=f"one of {READY}, {CARE}")
        if self.minimize not in COSTS:
            raise UsageError("no such cost", where=f"--minimize {self.minimize}", hint=f"one of {', '.join(COSTS)}")
        if self.minimize != "bytes" and not self.of_kl:
            raise UsageError(
                "is for a budget of KL: within another one it is the KL that is kept low",
                where=f"--minimize {self.minimize}",
                hint="give --max-kl, --as-good-as or --verdict",
            )

    @property
    def of_kl(self) -> bool:
        """Whether the KL is limited, and a cost is kept low."""
        return [self.max_kl, self.as_good_as, self.verdict].count(None) < 3

    @property
    def of_compute(self) -> bool:
        """Whether compute counts, so that hardware has to be known."""
        return self.max_compute is not None or self.minimize == "compute"

    def __str__(self) -> str:
        """The options that it was given by."""
        options = (
            ("--max-bits", self.max_bits),
            ("--max-bytes", self.max_bytes),
            ("--max-kl", self.max_kl),
            ("--as-good-as", self.as_good_as),
            ("--verdict", self.verdict),
            ("--max-compute", self.max_compute),
        )
        return " ".join(
            f"{name} {value:.12g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in options
            if value is not None
        )

    def limit(self, menu: Menu, policy: Policy, simulation: Simulation) -> Limit:
        """The limit for a solver. simulation: the card's. Raises UsageError where the policy, or the card, has none of
        that name.
        """
        size = self.max_bytes if self.max_bits is None else size_of_bits(menu, self.max_bits)
        high = None
        if self.verdict is not None:
            high = self._of(policy)
            if not 0 < high < math.inf:
                raise UsageError(f"policy {policy.name} has no such limit of KL", where=f"--verdict {self.verdict}")
        return Limit(
            max_size=size,
            max_kl=self.max_kl if self.as_good_as is None else kl_of_scheme(self.as_good_as, simulation),
            max_kl_high=high,
            max_compute=self.max_compute,
            least=self.minimize,
        )

    def in_words(self, policy: Policy) -> str:
        """`at most 5.5 bits a weight and .6 of the compute`."""
        parts = [self._in_words(policy)]
        if self.max_compute is not None:
            parts.append(f"at most {self.max_compute:.4g} of the unquantized compute")
        if self.minimize == "compute":
            parts.append("the least compute")
        return " and ".join(filter(None, parts))

    def _in_words(self, policy: Policy) -> str | None:
        """The budget besides that of compute."""
        if self.max_bits is not None:
            return f"at most {self.max_bits:g} bits a weight"
        if self.max_bytes is not None:
            return f"at most {self.max_bytes:,} bytes of weights"
        if self.max_kl is not None:
            return f"a KL of at most {self.max_kl:g}"
        if self.as_good_as is not None:
            return f"as good as {self.as_good_as} in all groups"
        if self.verdict is None:
            return None
        return f"a KL surely within {limit_number(self._of(policy))} ({self.verdict} under policy {policy.name})"

    def _of(self, policy: Policy) -> float:
        return policy.kl.ready if self.verdict == READY else policy.kl.care
