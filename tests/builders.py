"""Small models, tokenizers, corpora, tensors and profiles that tests are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from quantaudit.corpus.load import Corpus, CorpusRow, load_corpus
from quantaudit.corpus.tokens import TextReaders, TokenizedCorpus, TokenizedSample, tokenize
from quantaudit.measure.collector import SiteRecorder, recorder_for
from quantaudit.measure.profile import Profile
from quantaudit.model.loading.checkpoint import locate
from quantaudit.model.loading.info import module_info
from quantaudit.model.loading.load import LoadedModel, load_model
from quantaudit.provenance import CorpusInfo, EnvironmentInfo, ModelInfo, Provenance, SampleInfo, SiteInfo, SplitInfo
from quantaudit.recipe.resolve import Resolution
from quantaudit.simulate.opened_recipe import OpenedRecipe
from quantaudit.stats.distribution import Distribution
from quantaudit.stats.site import SiteStatistics, zero
from tests.rows import labels_of

VOCABULARY = 260
BYTES = 256
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
PAD = BYTES
CHAT_TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"

Sample = tuple[int, Tensor, NDArray[np.int64]]
"""(index, x [tokens, channels], token ids [tokens]) of one sample of one site."""


# Tensors and their statistics ----------------------------------------------------------------------------------------


def from_patterns(patterns: NDArray[np.uint16], dtype: torch.dtype) -> Tensor:
    """The 16-bit tensor whose bit patterns these are, NaNs and subnormals included."""
    return torch.from_numpy(np.ascontiguousarray(patterns).view(np.int16).copy()).view(dtype)


def accumulate(samples: Iterable[Sample]) -> SiteStatistics:
    """The statistics of these samples of one site, fed in this order to what the package uses on this device."""
    record: SiteRecorder | None = None
    for index, x_TC, tokens_T in samples:
        record = record or recorder_for(x_TC.device).site(x_TC.dtype)
        record.add(x_TC, labels_of([(index, 0, tokens_T)]))
    found = record and record.result(0)
    return found or zero("bfloat16")


def distribution_of(x: Tensor) -> Distribution:
    """The histogram of any tensor."""
    flat = x.reshape(-1, 1)
    return accumulate([(0, flat, np.zeros(len(flat), np.int64))]).distribution


def make_samples(tensors: Sequence[Tensor]) -> list[Sample]:
    """Samples 0, 1, … of these [tokens, channels] tensors; a token's id encodes its sample and position."""
    return [(i, x, 1000 * i + np.arange(len(x), dtype=np.int64)) for i, x in enumerate(tensors)]


def parts(value: Any) -> dict[str, Any]:
    """A statistic's arrays by dotted name, nested dataclasses opened."""
    if not dataclasses.is_dataclass(value):
        return {"": value}
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        for name, part in parts(getattr(value, field.name)).items():
            found[f"{field.name}.{name}".rstrip(".")] = part
    return found


def differences(a: Any, b: Any) -> list[str]:
    """Names of the arrays in which two statistics differ by dtype, shape or any bit; empty when they are the same."""
    left, right = parts(a), parts(b)
    assert left.keys() == right.keys()
    return [name for name in left if not _identical(left[name], right[name])]


def _identical(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        # NaNs compare by value, not by payload: which NaN a maximum keeps is nobody's business.
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return bool(a == b)


# Models --------------------------------------------------------------------------------------------------------------

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": BYTES + 1,
    "eos_token_id": BYTES + 2,
    # Wider than usual, so that a few random layers already make quantization errors that can be distinguished.
    "initializer_range": 0.2,
}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {"sliding_window": 16}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "gemma2": ("Gemma2Config", {"query_pre_attn_scalar": 16, "sliding_window": 16}),
    "gemma3": ("Gemma3TextConfig", {"query_pre_attn_scalar": 16, "sliding_window": 16}),
    "olmo2": ("Olmo2Config", {}),
    "phi3": ("Phi3Config", {}),
}
"""Name → transformers configuration class and what it needs in addition to the common sizes."""


def tiny_config(name: str, **overrides: Any) -> transformers.PretrainedConfig:
    """A three-layer configuration of one architecture."""
    cls, extra = CONFIGS[name]
    return getattr(transformers, cls)(**{**_SIZES, "tie_word_embeddings": False, **extra, **overrides})


def tiny_model(name: str, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0, **overrides: Any) -> Any:
    """A random model in evaluation mode; one channel of every down_proj input is made an outlier where there is one."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(tiny_config(name, **overrides)).to(dtype).eval()
    with torch.no_grad():
        for path, module in model.named_modules():
            if path.endswith("up_proj"):
                module.weight[-1] *= 20  # the last row belongs to `up` in fused gate_up_proj too
    return model


def tiny_tokenizer(*, chat_template: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte, and four special ones; decodes what it encodes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: i for i, symbol in enumerate([*alphabet, *SPECIAL])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    if chat_template:
        made.chat_template = CHAT_TEMPLATE
    return made


def save_checkpoint(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast | None = None, **options: Any) -> Path:
    """Save model and tokenizer as a local checkpoint; options go to the model's save_pretrained."""
    model.save_pretrained(folder, **options)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def load(
    folder: Path, dtype: str = "auto", *, by_block: bool = False, device: str | torch.device = "cpu"
) -> LoadedModel:
    """Load a local checkpoint, on the CPU by default."""
    return load_model(locate(str(folder)), device=torch.device(device), dtype=dtype, by_block=by_block)


def loaded_from(model: Any, base: LoadedModel) -> LoadedModel:
    """`model` under another's tokenizer and provenance, for tests that change weights in memory."""
    modules = [module_info(name, module) for name, module in model.named_modules() if name]
    dtype = str(model.dtype).removeprefix("torch.")
    info = base.info.model_copy(update={"dtype": dtype, "modules": modules})
    return LoadedModel(model=model, tokenizer=base.tokenizer, info=info)


def hooks(model: nn.Module) -> int:
    """How many forward hooks and pre-hooks are registered anywhere in a model."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def weight_bytes(model: nn.Module) -> dict[str, bytes]:
    """Every parameter's bytes by name, shared ones under all their names."""
    return {
        name: parameter.detach().contiguous().view(torch.uint8).numpy().tobytes()
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }


# Corpora -------------------------------------------------------------------------------------------------------------


def random_corpus(
    lengths: Sequence[int], *, seed: int = 0, domains: Sequence[str] = ("a", "b", "c")
) -> TokenizedCorpus:
    """Samples of random bytes, domains in turn, split by the package's own rule."""
    rng = np.random.default_rng(seed)
    rows = [
        CorpusRow(input_ids=[int(i) for i in rng.integers(0, BYTES, length)], domain=domains[k % len(domains)])
        for k, length in enumerate(lengths)
    ]
    corpus = Corpus(spec="random", name="random", sha256="0" * 64, rows=tuple(rows))
    return tokenize(
        corpus, TextReaders(tokenizer=tiny_tokenizer()), vocab_size=VOCABULARY, context_length=None, max_length=2048
    )


def builtin_corpus(loaded: LoadedModel, *, samples: int, max_length: int) -> TokenizedCorpus:
    """A part of the built-in corpus, fair to its domains, in a model's own tokens."""
    return tokenize(
        load_corpus("builtin"),
        TextReaders(tokenizer=loaded.tokenizer),
        vocab_size=loaded.info.vocab_size,
        context_length=loaded.info.context_length,
        max_length=max_length,
        samples=samples,
    )


def sample(ids: Sequence[int], *, index: int = 0, domain: str = "a", split: Any = "evaluation") -> TokenizedSample:
    """One tokenized sample."""
    return TokenizedSample(index=index, id=f"s{index}", domain=domain, split=split, ids=np.asarray(ids, dtype=np.int64))


# Profiles ------------------------------------------------------------------------------------------------------------


def provenance(sites: Sequence[SiteInfo], samples: Sequence[SampleInfo], **changes: Any) -> Provenance:
    """A provenance that says as little as it may about everything but sites and samples."""
    nothing = SplitInfo(samples=0, tokens=0)
    made = Provenance(
        quantaudit_version="0",
        model=ModelInfo(
            spec="m", name="m", architecture="A", model_type="t", dtype="bfloat16", parameters=1, layers=1,
            hidden_size=1, vocab_size=1, context_length=None, revision=None, files={}, fingerprint="f",
            config_sha256="c", notes=[], modules=[],
        ),
        corpus=CorpusInfo(
            spec="c", name="c", sha256="s", samples=0, tokens=0, truncated=0, max_length=1, seed=0,
            calibration=nothing, evaluation=nothing, domains={}, notes=[],
        ),
        environment=EnvironmentInfo(
            python="3", platform="p", packages={}, device="cpu", attention="sdpa", batch_size=1, seed=0, timings={}
        ),
        samples=list(samples),
        sites=list(sites),
        unmeasured=[],
        token_text={},
    )  # fmt: skip
    return made.model_copy(update=changes)


def site_info(name: str, **changes: Any) -> SiteInfo:
    """A Linear's input without members."""
    made = SiteInfo(name=name, kind="linear_input", layer=0, module="m", tap="input", members=[])
    return made.model_copy(update=changes)


def opened_recipe(
    loaded: LoadedModel,
    profile: Profile,
    corpus: TokenizedCorpus,
    resolution: Resolution,
    samples: Sequence[TokenizedSample],
    path: Path = Path("w8a8_static.yaml"),
) -> OpenedRecipe:
    """A resolved recipe with all that advice and verification begin with."""
    return OpenedRecipe(
        path=path, resolution=resolution, loaded=loaded, profile=profile, corpus=corpus, samples=samples
    )
