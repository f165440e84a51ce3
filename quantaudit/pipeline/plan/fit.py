"""Whether a model runs whole or block by block: whole where memory holds its weights, and what a run adds to them."""

from __future__ import annotations

import gc
from collections.abc import Sequence

from torch import nn

from quantaudit.common.progress import Stages, silent_stages
from quantaudit.common.ranks.team import team
from quantaudit.model.blockwise.checkpoint_blocks import why_whole
from quantaudit.model.blockwise.memory import give_back, sizes_apart
from quantaudit.model.loading.checkpoint import Checkpoint
from quantaudit.pipeline.files import InputFiles, open_files
from quantaudit.pipeline.passes import COPIES
from quantaudit.pipeline.plan.demand import demands_of
from quantaudit.pipeline.prepare import AuditInputs, Say, prepare, silent
from quantaudit.pipeline.schedule import count_work
from quantaudit.settings import Settings


def prepare_within(
    settings: Settings,
    memory: int,
    say: Say = silent,
    *,
    files: InputFiles | None = None,
    stages: Stages = silent_stages,
    measured: bool = False,
    simulated: bool = True,
) -> AuditInputs:
    """What a job begins with that can do without the whole model. memory: bytes that the process may use.

    `prepare` looks at the size of the weights, which it knows before they are loaded; where these fit and the run does
    not, they are loaded once more, and their blocks left on disk. measured, simulated: what the job has, and does.
    Raises a QuantauditError that names the cause.
    """
    files = files or open_files(settings)
    copies = COPIES if simulated else 1
    inputs = prepare(settings, say, files=files, stages=stages, memory=memory, copies=copies)
    if not isinstance(files.model, Checkpoint):  # it was given in memory
        return inputs
    needed = _beyond(inputs, memory, measured=measured, simulated=simulated)
    needed = team().combined(needed, max)  # all ranks run it one way
    if needed == 0:
        return inputs
    loaded, (takes, of) = inputs.loaded, sizes_apart(needed, memory)
    sizes = f"a run of the whole model takes {takes}, of {of}"
    reason = only_whole(files.model, loaded.model, loaded.architecture.blocks)
    reason = reason or next((f"{recipe.name} smooths it" for recipe in inputs.recipes if recipe.smooth), None)
    if reason is not None:
        say(f"{sizes}, and this model runs whole: {reason}")
        return inputs
    say(f"{sizes}: run block by block, each read from disk")
    del inputs, loaded
    gc.collect()
    give_back()
    inputs = prepare(settings, files=files, stages=stages, memory=memory, copies=copies, by_block=True)
    if inputs.loaded.weights is None:
        say(f"this model runs whole: {inputs.loaded.runs_whole}")
    return inputs


def only_whole(checkpoint: Checkpoint, model: nn.Module, blocks: Sequence[str]) -> str | None:
    """Why a model cannot run block by block; None where it can."""
    return "GGUF files are dequantized as one" if checkpoint.gguf else why_whole(model, blocks)


def _beyond(inputs: AuditInputs, memory: int, *, measured: bool, simulated: bool) -> int:
    """Bytes that a run of the whole model takes, where they are more than there are; 0 where it fits."""
    loaded = inputs.loaded
    if loaded.weights is not None or loaded.device.type != "cpu":  # an accelerator has memory of its own
        return 0
    work = count_work(
        inputs.settings,
        inputs.corpus.info,
        inputs.chosen,
        loaded.architecture,
        measured=measured,
        simulated=simulated,
    )
    demands = demands_of(inputs, work)
    return 0 if demands.fit_whole(memory) else demands.whole.peak
