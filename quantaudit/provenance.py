"""Where numbers come from: the records that a profile carries and a card repeats."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from quantaudit.common.choices import SpecialTokens
from quantaudit.quantities import Count, Name, Positive, Seconds, Shape


class Row(BaseModel):
    """Base of every record in a file: immutable, and strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """Fields for `repr`, in one screen: what holds many rows, or much text, says how much."""
        return ((name, _brief(value)) for name, value in super().__repr_args__())


class _Brief(str):
    """A text that is its own `repr`."""

    def __repr__(self) -> str:
        return str(self)


def _brief(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _Brief(f"{type(value).__name__}(…)")
    if isinstance(value, list | tuple | dict) and len(value) > 3:
        return _Brief(f"<{len(value):,} items>")
    if isinstance(value, list | tuple) and any(isinstance(item, BaseModel) for item in value):
        return _Brief(f"<{len(value):,} {type(value[0]).__name__}>")
    return _Brief(f"{value[:77]!r}…") if isinstance(value, str) and len(value) > 80 else value


Split = Literal["calibration", "evaluation"]
"""What a sample is for: static scales come from the first, errors are reported on the second."""
SPLITS: tuple[Split, Split] = ("calibration", "evaluation")


class ModuleInfo(Row):
    """A module of the model's skeleton, enough to rebuild it as a shell for recipe matchers."""

    name: str
    classes: list[str] = Field(description="class names, most derived first, down to torch.nn.Module")
    weight_shape: Shape | None


class Doubt(Row):
    """Evidence that what was loaded is not the model that was meant. text: what was found, as a clause."""

    kind: Literal["class", "unused", "head", "values", "ahead"] = Field(
        description="another class than the checkpoint names; stored and not used; a head of its own where a tied one "
        "is configured; weights that no training leaves; logits that depend on later tokens"
    )
    text: str
    module: str | None = None
    count: Count = Field(default=1, description="how many tensors or modules it is true of")


InputPart = Literal["tokenizer", "chat_template", "processor"]
"""What text and images go through on their way to token ids and patches."""


class InputDigests(Row):
    """What decides, in addition to the weights, what a model computes and reads, part by part: mostly SHA-256.

    What does not change that is left out: where files lie, which transformers wrote them, and the order of keys.
    """

    config: str = Field(description="of the configuration")
    settings: dict[str, str] = Field(
        description="each setting of the configuration by its path → first 16 digits of its value's SHA-256"
    )
    tokenizer: str | None = Field(description="of all that makes the tokenizer; null where the weight file holds it")
    tokenizer_files: dict[str, str] = Field(description="the same by file, where it is made of files")
    chat_template: str | None = Field(description="of the chat template; null without one")
    generation: str | None = Field(description="of the generation config, on which no number here depends")
    processor: str | None = Field(default=None, description="of the image processor, where images were read")
    code: str | None = Field(
        default=None,
        description="of the checkpoint's own Python files that ran (--trust-remote-code); null without any",
    )
    configuration: dict[str, JsonValue] | None = Field(
        default=None,
        description="the settings that take part in what is computed, by path, as transformers completes them; null in "
        "older files",
    )
    generation_settings: dict[str, JsonValue] | None = Field(
        default=None, description="the generation config as transformers completes it; null in older files"
    )
    tokenizer_parts: dict[str, str] | None = Field(
        default=None, description="each part of what the tokenizer does; null in older files, and where it is not known"
    )


class WeightSketch(Row):
    """What is kept of a parameter, by which another one shows."""

    rms: float = Field(ge=0, allow_inf_nan=False)
    projections: str = Field(
        pattern="^([0-9a-f]{2})+$", description="random projections over the norm, in sixteenths, one byte each"
    )


class ModelInfo(Row):
    """Which checkpoint was audited."""

    spec: str
    name: Name
    architecture: str
    model_type: str
    dtype: str
    parameters: Positive
    layers: Count
    hidden_size: Positive
    vocab_size: Positive
    context_length: Count | None
    revision: str | None
    files: dict[str, str] = Field(description="path of a weight file within the checkpoint → SHA-256")
    fingerprint: str = Field(description="SHA-256 over the hashes of the weight files in the order of their paths")
    config_sha256: str = Field(description="of the configuration as transformers completes it")
    inputs: InputDigests | None = Field(
        default=None, description="digests of configuration, tokenizer and templates; null in older files"
    )
    notes: list[str] = Field(description="what loading changed, such as dequantization")
    modules: list[ModuleInfo]
    weights: dict[str, WeightSketch] | None = Field(
        default=None, description="path of a parameter → what is kept of its values; null in older files"
    )
    doubts: list[Doubt] = Field(default=[], description="why this may not be the model that was meant")
    split_wrongly: list[str] = Field(
        default=[], description="stacked experts of which `oneshot` makes Linears that compute something else, or fails"
    )


REDACTED = "redacted"
"""Stands for the name and the place of a corpus that is private."""


class SplitInfo(Row):
    """How much text a split, a domain or a whole corpus holds."""

    samples: Count
    tokens: Count


class CorpusInfo(Row):
    """Which text was run through the model."""

    spec: str
    name: str
    sha256: str
    samples: Count
    tokens: Count
    truncated: Count = Field(description="samples cut at max_length or at the model's context")
    max_length: Count
    seed: int
    calibration: SplitInfo
    evaluation: SplitInfo
    domains: dict[str, SplitInfo]
    revision: str | None = Field(default=None, description="commit of a Hub dataset")
    special_tokens: SpecialTokens = Field(
        default="auto", description="auto: the tokenizer's own and its chat template; none: neither"
    )
    tokenizer: str | None = Field(default=None, description="what its token ids were decoded with, to tokenize again")
    tokenizer_sha256: str | None = Field(default=None, description="of what that tokenizer does")
    images: Count = Field(default=0, description="samples with images")
    available: Count | None = Field(
        default=None, description="samples of the corpus, where a part was taken, fairly over domains; null for all"
    )
    notes: list[str] = Field(default=[], description="what reading and tokenizing changed, such as an empty row")
    redacted: bool = Field(
        default=False, description="whether what reveals its text was taken out: tokens, positions, names"
    )
    overlapping: Count | None = Field(
        default=None,
        description="samples of the evaluation split whose text calibrates too, equal but for white space, its "
        "beginning, or nearly; null in older files",
    )
    repeated: Count | None = Field(
        default=None, description="samples whose split holds their text already, or nearly; null in older files"
    )
    padded: list[str] = Field(
        default=[], description="samples that begin or end in a run of padding tokens, or are nothing else"
    )


Arithmetic = Literal["native", "float32"]
"""How products of a model's dtype are computed: by the device's own kernels, or in float32 and rounded once."""


class EnvironmentInfo(Row):
    """With what, and how long it took. `timings` (seconds) is the only part that differs between equal runs."""

    python: str
    platform: str
    packages: dict[str, str]
    device: str
    attention: str = Field(description="attention implementation of the forward passes")
    arithmetic: Arithmetic = Field(
        default="native",
        description="how products of the model's dtype were computed: by the device's own kernels, or in float32 and "
        "rounded once to the dtype",
    )
    batch_size: Count = Field(description="samples in a batch, at most")
    batch_tokens: Count | None = Field(
        default=None, description="tokens of a batch, padding included, by which samples were put together"
    )
    seed: int
    timings: dict[str, Seconds]


class SampleInfo(Row):
    """One sample of the corpus, by its index in the list."""

    id: str
    domain: str
    split: Split
    tokens: Count


COMPONENTS = {
    "embedding": "embedding",
    "residual": "hidden",
    "attention_output": "attention_output",
    "mlp_output": "mlp_output",
    "gate": "gate",
    "router_logits": "router_logits",
    "final_norm": "final_norm",
}
"""Kind of a site → what arXiv 2605.15572 calls it. Inputs of Linears are none of its components."""


class SiteInfo(Row):
    """One observed tensor. `members` are the Linears that read it, by full path; empty for other kinds."""

    name: str
    kind: str
    layer: Count | None
    module: str
    tap: Literal["input", "output"]
    members: list[str]
    modules: list[str] = Field(
        default_factory=list, description="where a site gathers several modules' outputs, all of them"
    )
    parts: list[str] = Field(
        default_factory=list, description="sites, one for each expert, that this one is the merge of"
    )
    expert: str | None = Field(default=None, description="which of its layer's experts reads it")
    all_tokens: str | None = Field(
        default=None, description="the site that holds an expert's input over all tokens, not only those routed to it"
    )

    @property
    def parent(self) -> str:
        """Path of the module around the tapped one."""
        return self.module.rpartition(".")[0]


UnmeasuredCause = Literal[
    "undersampled",
    "never_ran",
    "no_images",
    "uncalled",
    "other_rows",
    "one_split",
    "not_linear",
    "no_module",
    "absent",
    "other",
]
_CAUSES: tuple[tuple[str, UnmeasuredCause], ...] = (
    (r"^expert saw ", "undersampled"),
    (r"its rows are not the tokens'$", "other_rows"),
    (r"never calls it|^never ran although", "uncalled"),
    (r"never ran in the forward pass$", "never_ran"),
    (r"^no images ", "no_images"),
    (r"^saw no token of the ", "one_split"),
    (r"which is not a Linear$|which no recipe reaches$", "not_linear"),
    (r"^no module was recogni", "no_module"),
)
"""Reasons as files that name no cause have them, each with its cause."""


def _cause_may_lack(schema: dict[str, Any]) -> None:
    """Cards that were written before rows named a cause stay valid."""
    schema["required"] = [name for name in schema["required"] if name != "cause"]


class Unmeasured(Row):
    """A module that no statistic covers, and why. reason: for people; cause: the same for programs."""

    model_config = ConfigDict(json_schema_extra=_cause_may_lack)

    module: str
    reason: str
    weights: bool = Field(default=False, description="whether it holds weights that a recipe could quantize")
    absent: bool = Field(default=False, description="whether the model has no such part, so that nothing is missing")
    cause: UnmeasuredCause = Field(
        default="other",
        description="for programs: an expert that too few tokens were routed to; never run; no images in the corpus;"
        " not called by the module around it, which ran; rows that are not the tokens; no token of one split; "
        "weights that no Linear holds; no module recognized as this part; no such part in the model; anything else. "
        "Derived from the reason in files without it",
    )

    @model_validator(mode="before")
    @classmethod
    def _derive_cause(cls, values: Any) -> Any:
        """Fill in the cause of a row from a file that has none."""
        if not isinstance(values, dict) or "cause" in values:
            return values
        if values.get("absent"):
            return {**values, "cause": "absent"}
        reason = str(values.get("reason", ""))
        return {**values, "cause": next((cause for pattern, cause in _CAUSES if re.search(pattern, reason)), "other")}


class ShardsInfo(Row):
    """Which parts of a run a profile holds, where it is not the whole of it."""

    count: Positive = Field(description="into how many shards the run was divided")
    held: list[Positive] = Field(description="those that this profile holds, counted from 1")

    @property
    def missing(self) -> list[int]:
        """The shards that are not held."""
        return [index for index in range(1, self.count + 1) if index not in self.held]

    def named(self) -> str:
        """`shards 1 and 2 of 4`."""
        return f"shard{'s' if len(self.held) > 1 else ''} {', '.join(map(str, self.held))} of {self.count}"


class Provenance(Row):
    """Everything that a profile's numbers depend on."""

    quantaudit_version: str
    model: ModelInfo
    corpus: CorpusInfo
    environment: EnvironmentInfo
    samples: list[SampleInfo]
    sites: list[SiteInfo]
    unmeasured: list[Unmeasured]
    token_text: dict[int, str] = Field(description="text of the tokens at peaks")
    shards: ShardsInfo | None = Field(default=None, description="which shards of a run it holds; null for all of it")


def explain(error: ValidationError) -> str:
    """Every mistake of a pydantic error on one line: `path: what`, the first five of them."""
    problems = [
        ": ".join(part for part in (".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, ")) if part)
        for item in error.errors()
    ]
    more = f" (+{len(problems) - 5} more)" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more
