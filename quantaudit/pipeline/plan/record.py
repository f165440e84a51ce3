"""A plan as data: what a report of a model will take, in each of the ways in which the model can run."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

FORMAT_VERSION = 1
WayName = Literal["whole", "block by block"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Weights(_Record):
    """Bytes as they are loaded. largest_block: of the decoder block with the most; outside: of all else."""

    dtype: str
    total: int
    blocks: int
    largest_block: int
    outside: int


class Text(_Record):
    """Tokens that are measured and that predictions are taken on. counted: by the model's own tokenizer."""

    samples: int
    tokens: int
    longest: int
    evaluated: int
    counted: bool


class StageTime(_Record):
    """A stage of a report, and the seconds that it takes."""

    title: str
    seconds: float


class Way(_Record):
    """One way to run. memory: bytes at the peak; least_budget: the smallest --memory-budget; disk: bytes in the
    temporary folder, all of one rank and null where the model runs whole alone. why_not: why it does not run so.
    """

    name: WayName
    memory: int | None
    least_budget: int
    disk: int | None
    stages: list[StageTime]
    why_not: str | None = None

    @property
    def seconds(self) -> float:
        """From the command to the card."""
        return sum(stage.seconds for stage in self.stages)


class AuditPlan(_Record):
    """What `quantaudit report` will take under the same options. budget: bytes for all ranks of a machine; passes:
    forward passes over the evaluated tokens; tokens_per_second: of forward passes without logits, of one rank; chosen:
    how it runs; None where it does not.
    """

    format_version: int = FORMAT_VERSION
    model: str
    architecture: str
    parameters: int
    device: str
    weights: Weights
    text: Text
    schemes: int
    ranks: int
    budget: int
    passes: float
    tokens_per_second: float
    speed: Literal["measured", "given"]
    ways: list[Way]
    chosen: WayName | None

    def way(self, name: WayName) -> Way:
        """A way by its name."""
        return next(way for way in self.ways if way.name == name)

    def to_json(self) -> str:
        """Indented, with a line break at the end."""
        return self.model_dump_json(indent=2) + "\n"
