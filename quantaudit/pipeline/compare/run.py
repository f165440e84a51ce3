"""Comparing checkpoints: the same held-out tokens through each of them, two models in memory at a time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from quantaudit.common.progress import Stages, silent_stages
from quantaudit.compare.limits import Limit
from quantaudit.compare.logits.caveats import LoadedSide
from quantaudit.compare.logits.records import ComparedModel, LogitsComparison
from quantaudit.compare.logits.run import ComparedText, OtherSide, compare_sides
from quantaudit.compare.logits.tokens import check_reach, check_same_tokens, common_width
from quantaudit.compare.subjects.read import labels_of
from quantaudit.corpus.tokens import TextReaders, TokenizedSample, tokenize
from quantaudit.measure.run import environment
from quantaudit.model.blockwise.memory import give_back
from quantaudit.model.forward.arithmetic import choose_arithmetic, computed_in
from quantaudit.model.forward.causal import ahead_doubts
from quantaudit.model.loading.checkpoint import COMPRESSED, Checkpoint
from quantaudit.model.loading.input_digests import template_digest
from quantaudit.model.loading.load import LoadedModel, load_model, load_tokenizer, parse_device, tokenizer_of
from quantaudit.pipeline.compare.files import ModelFiles
from quantaudit.pipeline.prepare import AuditInputs, Say, prepare, silent
from quantaudit.pipeline.schedule import announce_stages, loading_seconds
from quantaudit.settings import Settings
from quantaudit.simulate.cost import ROUNDING, logits_stages
from quantaudit.simulate.evaluation import Selection, choose
from quantaudit.simulate.logits.rounding_floor import rounding_floor
from quantaudit.simulate.logits.two_models import logits_width, score_pair
from quantaudit.verify.saved import load_quantized


def compare_logits(
    files: ModelFiles, limits: Sequence[Limit] = (), *, stages: Stages = silent_stages, say: Say = silent
) -> LogitsComparison:
    """Every other model against the base, on the evaluation samples of the corpus in the base's tokens.

    The base stays in memory, and next to it one other model at a time. Raises QuantauditErrors for models that cannot
    be compared token by token, and as `prepare` does.
    """
    labels = labels_of([(checkpoint.name, checkpoint.spec) for checkpoint in files.checkpoints])
    inputs = _prepared(files, say, stages)
    run = _Run(
        files=files,
        inputs=inputs,
        chosen=choose(inputs.corpus.samples, inputs.settings.simulate.evaluation_tokens, inputs.loaded.tokenizer),
        stages=stages,
    )
    for checkpoint in files.others:
        run.check_tokens(checkpoint)
    with inputs.computed():
        run.announce(labels, say)
        ran = environment(inputs.loaded, batch_size=1, seed=inputs.settings.corpus.seed)
        base = run.side(files.checkpoints[0], inputs.loaded, labels[0])
        floor = run.floor()
        others = []
        for checkpoint, label in zip(files.others, labels[1:], strict=True):
            others.append(run.other(checkpoint, label, base))
            give_back()  # before the next one is loaded
    chats = any(row.messages for row in files.base.corpus.rows) and inputs.settings.corpus.special_tokens == "auto"
    text = ComparedText(corpus=inputs.corpus, chosen=run.chosen, chats=chats)
    return compare_sides(text, base, floor, others, limits, environment=ran)


def _prepared(files: ModelFiles, say: Say, stages: Stages) -> AuditInputs:
    settings = files.base.settings.changed(scheme_set="int8")  # nothing is simulated
    checkpoint = files.checkpoints[0]
    base = files.base
    if checkpoint.quantization == COMPRESSED:
        stages(f"loading {checkpoint.name}", 0)
        base = replace(base, model=_load(checkpoint, settings))
    return prepare(settings, say, files=base, stages=stages)


def _load(checkpoint: Checkpoint, settings: Settings) -> LoadedModel:
    spec = settings.model
    device = parse_device(spec.device)
    if checkpoint.quantization == COMPRESSED:
        return load_quantized(checkpoint, device=device, dtype=spec.dtype, trust_remote_code=spec.trust_remote_code)
    return load_model(checkpoint, device=device, dtype=spec.dtype, trust_remote_code=spec.trust_remote_code)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A base that is ready, and the samples that all models run on."""

    files: ModelFiles
    inputs: AuditInputs
    chosen: Selection
    stages: Stages

    @property
    def samples(self) -> list[TokenizedSample]:
        return self.chosen.samples

    def check_tokens(self, checkpoint: Checkpoint) -> None:
        """Before any weights of it are read: raises ModelError where a model's tokenizer is another than the base's."""
        trusted = self.inputs.settings.model.trust_remote_code
        theirs = tokenizer_of(checkpoint, trust_remote_code=trusted)
        ours = self.inputs.loaded.tokenizer
        check_same_tokens(ours, theirs, self.samples, self._tokenized, where=checkpoint.spec)

    def announce(self, labels: Sequence[str], say: Say) -> None:
        """How long it takes."""
        tokens = sum(len(sample.ids) for sample in self.samples)
        others = [
            (_loading(checkpoint), _scoring(label))
            for checkpoint, label in zip(self.files.others, labels[1:], strict=True)
        ]
        announce_stages(
            self.inputs,
            self.stages,
            say,
            f"{len(labels)} models on {tokens:,} evaluation tokens, two of them in memory at a time",
            lambda speed: logits_stages(tokens, speed, others=others, loading=loading_seconds(self.stages)),
        )

    def side(self, checkpoint: Checkpoint, loaded: LoadedModel, label: str) -> LoadedSide:
        """What a model says of itself, and what a short run says against it."""
        info = loaded.info
        model = ComparedModel(
            name=checkpoint.name,
            label=label,
            where=checkpoint.spec,
            architecture=info.architecture,
            parameters=info.parameters,
            dtype=info.dtype,
            arithmetic=choose_arithmetic(self.inputs.settings.model.arithmetic, loaded.model),
            width=logits_width(loaded.model, self.samples[0]),
            fingerprint=info.fingerprint,
            quantization=checkpoint.quantization,
            notes=info.notes,
        )
        doubts = [*info.doubts, *ahead_doubts(loaded.model, self.samples, loaded.device)]
        return LoadedSide(model=model, doubts=doubts, template=template_digest(loaded.tokenizer))

    def floor(self) -> float:
        """The base's rounding floor at its first block, nats per token."""
        loaded = self.inputs.loaded
        advance = self.stages(ROUNDING, len(self.samples), "samples")
        blocks = loaded.architecture.blocks
        return rounding_floor(loaded.model, blocks, self.samples, depths=1, progress=advance).at(0)

    def other(self, checkpoint: Checkpoint, label: str, base: LoadedSide) -> OtherSide:
        """One model next to the base; it is gone afterwards."""
        self.stages(_loading(checkpoint), 0)
        loaded, ours = _load(checkpoint, self.inputs.settings), self.inputs.loaded
        where = checkpoint.spec
        with self._computed(loaded):
            side = self.side(checkpoint, loaded, label)
            widths = base.model.width, side.model.width
            compared = common_width(widths, (ours.tokenizer, loaded.tokenizer), where)
            check_reach(self.samples, compared, loaded.info.context_length, where)
            advance = self.stages(_scoring(label), len(self.samples), "samples")
            scores = score_pair(ours.model, loaded.model, self.samples, vocabulary=compared, progress=advance)
        return OtherSide(side=side, scores=scores, compared=compared)

    def _computed(self, loaded: LoadedModel) -> AbstractContextManager[None]:
        """The context of the other model's products, in addition to the base's."""
        if loaded.info.dtype == self.inputs.loaded.info.dtype:
            return nullcontext()
        return computed_in(choose_arithmetic(self.inputs.settings.model.arithmetic, loaded.model), loaded.model)

    def _tokenized(self, tokenizer: Any) -> Sequence[TokenizedSample]:
        """The whole corpus, by another tokenizer."""
        spec = self.inputs.settings.corpus
        source = load_tokenizer(spec.corpus_tokenizer) if spec.corpus_tokenizer else None
        return tokenize(
            self.files.base.corpus,
            TextReaders(tokenizer=tokenizer, source=source),
            vocab_size=sys.maxsize,  # what the text becomes is compared, whatever it is
            context_length=self.inputs.loaded.info.context_length,
            max_length=spec.max_length,
            samples=spec.samples,
            seed=spec.seed,
            special_tokens=spec.special_tokens,
        ).samples


def _loading(checkpoint: Checkpoint) -> str:
    return f"loading {checkpoint.name}"


def _scoring(label: str) -> str:
    return f"comparing {label}"
