"""Planning: settings + a model's configuration → what a report of it takes, without its weights."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from quantaudit.common.timing import seconds_since_start
from quantaudit.corpus.load import Corpus
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.errors import ModelError, UsageError
from quantaudit.model.blockwise.budget import fits
from quantaudit.model.blockwise.memory import memory_budget, size_text
from quantaudit.model.forward.arithmetic import choose_for, computed_in
from quantaudit.model.loading.checkpoint import Checkpoint
from quantaudit.model.loading.load import load_skeleton, parse_device
from quantaudit.model.sites import Architecture, discover
from quantaudit.model.structure import context_length
from quantaudit.pipeline.passes import COPIES
from quantaudit.pipeline.plan import probe
from quantaudit.pipeline.plan.demand import Demands
from quantaudit.pipeline.plan.fit import only_whole
from quantaudit.pipeline.plan.record import AuditPlan, StageTime, Text, Way, WayName, Weights
from quantaudit.pipeline.plan.speed import typical
from quantaudit.pipeline.plan.text import count_tokens
from quantaudit.pipeline.prepare import batch_limit, read_recipes, shapes_in_blocks, smoothing_recipe
from quantaudit.pipeline.schedule import count_work
from quantaudit.quant.standard import ChosenSchemes, choose_schemes
from quantaudit.settings import Settings
from quantaudit.simulate.cost import Speed, Work, expected_stages, forward_passes

LOADING, LOOKING = "starting and loading", "looking at the blocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a plan is for. memory: bytes for all ranks of a machine, None for most of what is available here; ranks: on
    one machine. tokens_per_second, tflops: how fast one rank is; measured here where neither is given.
    """

    memory: int | None = None
    ranks: int = 1
    tokens_per_second: float | None = None
    tflops: float | None = None

    def __post_init__(self) -> None:
        if self.tokens_per_second is not None and self.tflops is not None:
            raise UsageError("two speeds", where="--tokens-per-second, --tflops", hint="give one of them, or none")
        for option, value in (("--tokens-per-second", self.tokens_per_second), ("--tflops", self.tflops)):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError("not a speed", where=f"{option} {value:g}", hint="give a number above 0")

    @property
    def rank_budget(self) -> int:
        """Bytes for one rank."""
        return memory_budget(self.memory) // self.ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """A model without weights, its text, and what is to be done. runs_whole: why it cannot run block by block."""

    settings: Settings
    checkpoint: Checkpoint
    model: nn.Module
    architecture: Architecture
    corpus: TokenizedCorpus
    chosen: ChosenSchemes
    runs_whole: str | None

    @property
    def work(self) -> Work:
        """Of a report."""
        return count_work(self.settings, self.corpus.info, self.chosen, self.architecture, rendered=True)

    @property
    def converted(self) -> bool:
        """Whether weights are stored in another form than they are used in."""
        mapping = get_model_conversion_mapping(self.model) or []
        return bool(self.checkpoint.quantization) or any(isinstance(entry, WeightConverter) for entry in mapping)


def plan(settings: Settings, checkpoint: Checkpoint, corpus: Corpus, machine: Machine) -> AuditPlan:
    """What a report under these settings takes on a machine. checkpoint: its weights are not needed.

    Raises ModelError where the model cannot be built from its configuration.
    """
    device, budget = parse_device(settings.model.device), machine.rank_budget
    subject, counted = _subject(settings, checkpoint, corpus)
    work, model = subject.work, subject.model
    demands = Demands(
        model,
        subject.architecture,
        subject.corpus.samples,
        settings,
        work,
        converted=subject.converted,
        wide=choose_for(settings.model.arithmetic, next(model.parameters()).dtype, device) == "float32",
        ranks=machine.ranks,
    )
    sizes = demands.sizes
    chosen = _chosen(subject, demands, budget, device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype = next(model.parameters()).dtype
    ways = {
        "whole": _whole(demands, budget, chosen=chosen == "whole"),
        "block by block": _by_block(subject, demands, budget),
    }
    speed = _speed(subject, machine, device)
    loading = seconds_since_start()
    reading = probe.reading_seconds(sizes.total)
    loading += reading + probe.hashing_seconds(sizes.total)
    blocks = reading * sum(sizes.blocks) / sizes.total
    timed = [
        _timed(way, work, replace(speed, reading=blocks if name != "whole" else 0.0), machine.ranks, loading)
        for name, way in ways.items()
    ]
    runs = next(way for way in timed if way.name == chosen)
    return AuditPlan(
        model=checkpoint.name,
        architecture=type(model).__name__,
        parameters=parameters,
        device=str(device),
        weights=Weights(
            dtype=str(dtype).removeprefix("torch."),
            total=sizes.total,
            blocks=len(sizes.blocks),
            largest_block=max(sizes.blocks),
            outside=sizes.outside,
        ),
        text=Text(
            samples=subject.corpus.info.samples,
            tokens=subject.corpus.info.tokens,
            longest=demands.lengths.longest,
            evaluated=work.evaluated,
            counted=counted,
        ),
        schemes=work.schemes,
        ranks=machine.ranks,
        budget=budget * machine.ranks,
        passes=forward_passes(work),
        tokens_per_second=1 / speed.forward,
        speed="measured" if machine.tokens_per_second is None and machine.tflops is None else "given",
        ways=timed,
        chosen=None if runs.why_not else chosen,
    )


def _subject(settings: Settings, checkpoint: Checkpoint, corpus: Corpus) -> tuple[_Subject, bool]:
    """What is planned, and whether tokens are counted by the model's own tokenizer."""
    asked = choose_schemes(settings.simulate.scheme_set, settings.simulate.schemes, {})
    recipes = read_recipes(settings.simulate.recipes, [scheme.name for scheme in asked.schemes])
    model: Any = load_skeleton(checkpoint, trust_remote_code=settings.model.trust_remote_code)
    _in_dtype(model, checkpoint, settings.model.dtype)
    architecture = discover(model, model_name=checkpoint.spec)
    _check_not_empty(model, architecture, checkpoint)
    config = model.config.get_text_config()
    tokenized, counted = count_tokens(
        corpus,
        checkpoint,
        settings.corpus,
        vocabulary=config.vocab_size,
        context=context_length(config),
    )
    runs_whole = only_whole(checkpoint, model, architecture.blocks)
    subject = _Subject(
        settings=settings,
        checkpoint=checkpoint,
        model=model,
        architecture=architecture,
        corpus=tokenized,
        chosen=choose_schemes(
            settings.simulate.scheme_set, settings.simulate.schemes, shapes_in_blocks(model, architecture)
        ),
        runs_whole=runs_whole or smoothing_recipe(recipes),
    )
    return subject, counted


def _check_not_empty(model: Any, architecture: Architecture, checkpoint: Checkpoint) -> None:
    """Raises ModelError where a weight that would be quantized has no element."""
    shapes = {name: model.get_submodule(name).weight.shape for group in architecture.groups for name in group.members}
    empty = next((name for name, shape in shapes.items() if not shape.numel()), None)
    if empty is not None:
        raise ModelError(
            f"its configuration makes {empty} a weight of shape {list(shapes[empty])}, which holds nothing",
            where=checkpoint.spec,
            hint="give the config.json that belongs to the model",
        )


def _in_dtype(model: Any, checkpoint: Checkpoint, dtype: str) -> None:
    """Give a skeleton the dtype that it is loaded in: as asked for, as its configuration says, or bfloat16."""
    said = getattr(model.config, "dtype", None) if dtype == "auto" else getattr(torch, dtype)
    if checkpoint.gguf or (checkpoint.quantization and dtype == "auto") or not isinstance(said, torch.dtype):
        said = torch.bfloat16
    model.to(said)


def _chosen(subject: _Subject, demands: Demands, budget: int, device: torch.device) -> WayName:
    """How a report runs within a budget: as `prepare_within` decides."""
    sizes = demands.sizes
    whole = fits(sizes.total, budget, copies=COPIES, wide=sizes.wide)
    whole = whole and (device.type != "cpu" or demands.fit_whole(budget))
    return "whole" if subject.runs_whole or whole else "block by block"


def _whole(demands: Demands, budget: int, *, chosen: bool) -> Way:
    demand, why_not = demands.whole, None
    if demand.peak > budget or not chosen:
        why_not = f"does not fit into {size_text(budget)}"
    return Way(
        name="whole", memory=demand.peak, least_budget=demand.least, disk=demand.disk, stages=[], why_not=why_not
    )


def _by_block(subject: _Subject, demands: Demands, budget: int) -> Way:
    demand, folder = demands.by_block(budget), tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    why_not = subject.runs_whole
    if why_not is None and demand.least > budget:
        why_not = f"a block does not fit into {size_text(budget)}"
    if why_not is None and demand.disk > free:
        why_not = f"{folder} has {size_text(free)} left"
    return Way(
        name="block by block",
        memory=None if subject.runs_whole else demand.peak,
        least_budget=demand.least,
        disk=None if subject.runs_whole else demand.disk,
        stages=[],
        why_not=why_not,
    )


def _timed(way: Way, work: Work, speed: Speed, ranks: int, loading: float) -> Way:
    """With the seconds of every stage."""
    stages = [StageTime(title=LOADING, seconds=loading)]
    if speed.reading:
        stages.append(StageTime(title=LOOKING, seconds=speed.reading))
    expected = expected_stages(work, speed.shared(ranks))
    stages += [StageTime(title=stage.title, seconds=stage.seconds) for stage in expected]
    return way.model_copy(update={"stages": stages})


def _speed(subject: _Subject, machine: Machine, device: torch.device) -> Speed:
    """Measured on this machine, or given by hand: then without the time in which weights are rounded, unknown here."""
    model, blocks = subject.model, subject.architecture.blocks
    if machine.tflops is not None:
        return probe.speed_by_flops(model, blocks, machine.tflops * 1e12)
    if machine.tokens_per_second is not None:
        return probe.speed_by_tokens(model, blocks, machine.tokens_per_second)
    dtype, shapes = next(model.parameters()).dtype, shapes_in_blocks(model, subject.architecture)
    rounding = probe.rounding_seconds(shapes, subject.chosen.schemes, dtype, device)
    info = subject.corpus.info
    tokens = _typical_tokens(subject.corpus, batch_limit(subject.settings).rows(info.tokens // info.samples))
    with computed_in(choose_for(subject.settings.model.arithmetic, dtype, device), model):
        return replace(probe.probed_speed(model, blocks, device, tokens), rounding=rounding)


def _typical_tokens(corpus: TokenizedCorpus, count: int) -> int:
    lengths: Sequence[int] = [len(sample.ids) for sample in typical(corpus.samples, count)]
    return sum(lengths) // len(lengths)
