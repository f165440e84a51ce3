"""Capture for other people's forward passes: `with quantaudit.observe(model) as observation: …` around any loop."""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from quantaudit._version import __version__
from quantaudit.common.choices import Experts
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import MeasurementError
from quantaudit.measure.collector import StatisticsCollector, never_fired, parents, token_text, unreadable
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import environment
from quantaudit.model.forward.arithmetic import arithmetic_now
from quantaudit.model.forward.capture import calls, capture
from quantaudit.model.forward.hooks import watch_inputs, watch_outputs
from quantaudit.model.forward.masked import MaskedBatch
from quantaudit.model.loading.in_memory import info_in_memory
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import discover, non_text_sites
from quantaudit.provenance import Arithmetic, CorpusInfo, Provenance, SampleInfo, Split, SplitInfo

NAME = "observed"


@contextmanager
def observe(
    model: nn.Module, *, tokenizer: Any = None, split: Split = "calibration", domain: str = NAME
) -> Iterator[Observation]:
    """Observe every forward pass of `model` while the context lasts; `observation.profile()` holds their statistics.

    The model is called as usual, with input_ids and, where there is padding on either side, a 2-D attention_mask;
    every row is a sample of its own, and padding enters no statistic. `observation.split` and `.domain` may be set
    between batches. tokenizer: only spells out the tokens at peaks. Hooks are removed whatever happens.

    Raises MeasurementError for a call whose tokens are not known: embeddings, images, a filled cache, other masks.

    >>> import torch
    >>> from transformers import AutoModelForCausalLM
    >>> model = AutoModelForCausalLM.from_pretrained("my-checkpoint")
    >>> with torch.no_grad(), quantaudit.observe(model) as observation:
    ...     output = model(torch.arange(8)[None])
    >>> observation.tokens
    8
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise MeasurementError(
            f"not a model of transformers, but {type(model).__name__}",
            hint="give a loaded model, such as a …ForCausalLM",
        )
    observation = Observation(model, tokenizer=tokenizer, split=split, domain=domain)
    signature = inspect.signature(model.forward)

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model runs: begin a batch with its tokens, however the caller passes them by its signature."""
        given = signature.bind_partial(*args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        cache = given.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            raise MeasurementError(
                "the model was called with a filled cache, whose tokens belong to earlier calls",
                hint="observe whole sequences: use_cache=False, and no generate()",
            )
        if any(name.startswith("pixel_values") and value is not None for name, value in given.items()):
            raise MeasurementError(
                "the model was called with images, whose patches are no tokens",
                hint="observe text, or give images to `quantaudit measure` in a corpus",
            )
        observation.begin(given.get("input_ids"), given.get("attention_mask"))

    with (
        observation.attached(),
        watch_inputs(model, enter, first=True),
        watch_outputs(model, lambda *_: observation.end(), always=True),
    ):
        yield observation


class Observation:
    """Statistics of whatever passes through a model. Who runs the forward says which batch is on its way.

    experts: `all` where whoever runs the forward gives linearized experts every token, as `oneshot` does.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        tokenizer: Any = None,
        split: Split = "calibration",
        domain: str = NAME,
        experts: Experts = "routed",
    ) -> None:
        self.model = model
        self.split: Split = split
        self.domain = domain
        self.architecture = discover(model, all_tokens=experts == "all")
        # Now: what quantizes the model later gives it parameters of its own.
        self.info = info_in_memory(model)
        self._tokenizer = tokenizer
        non_text = non_text_sites(model, self.architecture.sites)
        self._collector = StatisticsCollector(self.architecture, non_text=non_text, all_tokens=experts == "all")
        self._fired: Counter[str] = Counter()
        self._ran: Counter[str] = Counter()
        self._samples: list[TokenizedSample] = []
        self._batch_size = 1
        self._attention = ""
        self._arithmetic: Arithmetic = "native"
        self._batch: MaskedBatch | None = None

    def __repr__(self) -> str:
        """In one line, at any time."""
        return f"Observation({self.info.name}, {len(self._samples):,} samples, {self.tokens:,} tokens)"

    @contextmanager
    def attached(self, ignore: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Hooks for as long as this lasts. What passes while `ignore()` holds is not counted."""

        def receive(site: str, tensor: Tensor) -> None:
            """A tensor at a tap, its tokens first, counts for the batch that is under way."""
            if ignore():
                return
            if self._batch is None:
                raise MeasurementError(
                    "ran outside a forward pass of the observed model", where=site, hint="call the model as a whole"
                )
            self._collector.receive(site, tensor)

        sites = self.architecture.sites
        with (
            self._collector.routing.follow(self.model),
            capture(self.model, sites, receive, self._collector.refuse) as fired,
            calls(self.model, parents(self.architecture)) as ran,
        ):
            fired.update(self._fired)
            ran.update(self._ran)
            self._fired, self._ran = fired, ran
            yield

    def begin(self, input_ids: Any, attention_mask: Any = None) -> MaskedBatch:
        """A batch is on its way. input_ids: int [batch, longest]; attention_mask: the same shape, zero at padding.

        Raises MeasurementError where the tokens cannot be known.
        """
        if not isinstance(input_ids, Tensor) or input_ids.ndim != 2:
            raise MeasurementError(
                "the model was called without 2-D input_ids",
                hint="give token ids, not embeddings: peaks are reported with their tokens",
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if not isinstance(attention_mask, Tensor) or attention_mask.shape != input_ids.shape:
            raise MeasurementError(
                "the attention mask has another shape than input_ids", hint="give a 2-D mask, zero at padding"
            )
        mask = attention_mask.bool()
        rows = [
            TokenizedSample(
                index=len(self._samples) + row,
                id=f"{self.domain}-{len(self._samples) + row + 1}",
                domain=self.domain,
                split=self.split,
                ids=ids[valid].cpu().numpy().astype(np.int64),
            )
            for row, (ids, valid) in enumerate(zip(input_ids, mask, strict=True))
        ]
        self._samples += rows
        self._batch_size = max(self._batch_size, len(rows))
        config: Any = self.model.config
        self._attention = self._attention or str(config._attn_implementation)
        self._arithmetic = arithmetic_now(self.model)
        batch = MaskedBatch(samples=tuple(rows), input_ids=input_ids, mask=mask)
        self.resume(batch)
        return batch

    def resume(self, batch: MaskedBatch) -> None:
        """A batch begun before is on its way again, through other layers."""
        self._batch = self._collector.batch = batch

    def end(self) -> None:
        """No batch is on its way."""
        self._batch = None

    @property
    def tokens(self) -> int:
        """Tokens of all batches so far."""
        return sum(len(sample.ids) for sample in self._samples)

    def profile(self) -> Profile:
        """The profile of all batches so far. Its model is identified by its weights in memory.

        Raises MeasurementError where no tokens passed.
        """
        if not self.tokens:
            raise MeasurementError("no tokens passed through the model", hint="run the model inside the context")
        loaded = LoadedModel(model=self.model, tokenizer=cast(Any, self._tokenizer), info=self.info)
        statistics = self._collector.result()
        surroundings = environment(loaded, batch_size=self._batch_size, seed=0)
        provenance = Provenance(
            quantaudit_version=__version__,
            model=self.info,
            corpus=self._corpus(),
            environment=surroundings.model_copy(update={"attention": self._attention, "arithmetic": self._arithmetic}),
            samples=[
                SampleInfo(id=sample.id, domain=sample.domain, split=sample.split, tokens=len(sample.ids))
                for sample in self._samples
            ],
            sites=list(self.architecture.sites),
            unmeasured=[
                *self.architecture.unmeasured,
                *never_fired(self.architecture, self._fired, self._ran, images=False),
                *unreadable(self.architecture, self._collector.odd),
            ],
            token_text={} if self._tokenizer is None else token_text(self._tokenizer, statistics),
        )
        return Profile.assemble(provenance, statistics)

    def _corpus(self) -> CorpusInfo:
        samples = self._samples
        ids = hashlib.sha256()
        for sample in samples:
            ids.update(len(sample.ids).to_bytes(8, "little") + sample.ids.tobytes())

        def count(**labels: str) -> SplitInfo:
            chosen = [s for s in samples if all(getattr(s, key) == value for key, value in labels.items())]
            return SplitInfo(samples=len(chosen), tokens=sum(len(s.ids) for s in chosen))

        return CorpusInfo(
            spec=NAME,
            name=NAME,
            sha256=ids.hexdigest(),
            samples=len(samples),
            tokens=self.tokens,
            truncated=0,
            max_length=max(len(sample.ids) for sample in samples),
            seed=0,
            calibration=count(split="calibration"),
            evaluation=count(split="evaluation"),
            domains={domain: count(domain=domain) for domain in sorted({sample.domain for sample in samples})},
            notes=["text was run by a loop of its own; what prepared it is not known"],
        )
