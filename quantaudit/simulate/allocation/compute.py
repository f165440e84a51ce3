"""What multiply-accumulates cost on a machine: those of the tokens that reach a group, at the time its operands take.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantaudit.simulate.allocation.hardware import Hardware
from quantaudit.simulate.records import SchemeInfo

TOTAL = 10**9
"""Parts of the unquantized compute that shares are counted in: whole numbers, which add up exactly.

They are rounded down, so that a scheme that takes half the time is within half the compute.
"""


@dataclass(frozen=True, slots=True)
class Serving:
    """Where a model is to run. tokens: of a corpus, by Linear that is known to read them; by the first of a list of
    experts, those that were routed to any of them.
    """

    hardware: Hardware
    tokens: Mapping[str, int]

    def runs(self, info: SchemeInfo) -> bool:
        """Whether the hardware runs a scheme as it is."""
        return self.hardware.time_of(info) is not None

    def shares(self, groups: Iterable[Sequence[str]], weights: Mapping[str, int]) -> list[float]:
        """Of every group of Linears, its part of all multiply-accumulates. weights: numbers of them, by Linear.

        An expert multiplies only the tokens that are routed to it. A group that nothing is known of reads as many as
        any other does.
        """
        most = max(self.tokens.values(), default=1)
        macs = []
        for paths in groups:
            tokens = next((self.tokens[path] for path in paths if path in self.tokens), most)
            experts = len({path.rpartition(".")[0] for path in paths})
            macs.append(tokens * sum(weights[path] for path in paths) / experts)
        return [count / max(sum(macs), 1e-300) for count in macs]

    def cost(self, share: float, info: SchemeInfo | None) -> int:
        """Of a group under a scheme, in parts of TOTAL; of what the hardware does not run, as of 16 bits."""
        time = self.hardware.time_of(info)
        return math.floor(TOTAL * share * (1.0 if time is None else time))
