"""`quantaudit compare --logits` as its users meet it, on small models that have learned something."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import quantaudit
from quantaudit.corpus.load import load_corpus
from quantaudit.corpus.tokens import TextReaders, tokenize
from quantaudit.errors import UsageError
from quantaudit.model.forward.arithmetic import computed_in, native_products
from quantaudit.provenance import Arithmetic
from quantaudit.simulate.evaluation import choose
from quantaudit.simulate.logits.score_plans import score_checkpoint
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.verify.oneshot import load_saved
from tests.builders import load
from tests.command_line import Capture, run
from tests.learned import VOCABULARY, WORDS, corpus_rows, learned_checkpoint, word_tokenizer, write_corpus
from tests.llm_compressor import DYNAMIC, quantized_checkpoint

EXTRA = {"model.extra.weight": torch.ones(4, 4)}
SCALE = "model.layers.1.mlp.down_proj.weight_scale"
TOKENS = ("--evaluation-tokens", "300")


def changed(source: Path, target: Path, change: Any) -> Path:
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def noisy(tensors: dict[str, Tensor]) -> None:
    torch.manual_seed(1)
    for name, tensor in tensors.items():
        if tensor.ndim > 1 and "layers" in name:
            tensors[name] = tensor + 0.03 * tensor.std() * torch.randn_like(tensor)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints and a text in their language."""
    folder = tmp_path_factory.mktemp("checkpoints")
    base = learned_checkpoint(folder / "base", "dense")
    changed(base, folder / "near", noisy)
    changed(base, folder / "partial", lambda tensors: tensors.update(EXTRA))
    quantized_checkpoint(base, folder / "w8a8", DYNAMIC, [])
    word_tokenizer().save_pretrained(folder / "w8a8")
    changed(folder / "w8a8", folder / "w8a8-partial", lambda tensors: tensors.update(EXTRA))
    changed(folder / "w8a8", folder / "w8a8-unscaled", lambda tensors: tensors.pop(SCALE))
    others = {
        "respelled": (WORDS[1], WORDS[0], *VOCABULARY[2:]),
        "larger": (*VOCABULARY, "more"),
    }
    for name, vocabulary in others.items():
        shutil.copytree(base, folder / name)
        word_tokenizer(vocabulary).save_pretrained(folder / name)
    changed(folder / "larger", folder / "wider", _widen)
    settings = json.loads((folder / "wider/config.json").read_text())
    (folder / "wider/config.json").write_text(json.dumps(settings | {"vocab_size": len(VOCABULARY) + 1}))
    gptq = json.loads((base / "config.json").read_text()) | {"quantization_config": {"quant_method": "gptq"}}
    shutil.copytree(base, folder / "gptq")
    (folder / "gptq/config.json").write_text(json.dumps(gptq))
    write_corpus(folder / "text.jsonl", corpus_rows(36, calibration=6))
    return folder


def _widen(tensors: dict[str, Tensor]) -> None:
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:1]])


@pytest.fixture(autouse=True)
def inside(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)


def compare(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    return run(capsys, "compare", "--logits", *arguments, "--corpus", "text.jsonl", *TOKENS)


def answer(capsys: Capture, *arguments: str) -> dict[str, Any]:
    code, out, _ = compare(capsys, *arguments, "--format", "json")
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    return found


def test_the_same_checkpoint_is_nowhere_from_itself(capsys: Capture) -> None:
    code, out, err = compare(capsys, "base", "base", "--fail-on", "kl=0", "--fail-on", "top1=0")
    assert code == 0
    assert "both predict exactly the same" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    assert "comparing base (base) #2" in err


def test_the_interval_decides(capsys: Capture) -> None:
    mean = answer(capsys, "base", "near")["pairs"][0]["kl"]["mean"]
    assert 0 < mean["low"] < mean["value"] < mean["high"]
    expected = {mean["low"] / 2: 1, mean["value"]: 3, mean["high"]: 0, mean["high"] * 2: 0}
    for limit, code in expected.items():
        assert compare(capsys, "base", "near", "--fail-on", f"kl={limit!r}")[0] == code


def test_what_was_loaded_in_part_passes_nothing(capsys: Capture) -> None:
    for models in (("base", "partial"), ("partial", "base"), ("base", "w8a8-partial")):
        code, out, _ = compare(capsys, *models, "--fail-on", "kl=100")
        assert code == 3
        assert "QA712" in out
        assert "stored and not used" in " ".join(out.split())


def test_one_sample_decides_nothing(capsys: Capture) -> None:
    code, out, _ = run(
        capsys, "compare", "--logits", "base", "near", "--corpus", "text.jsonl", "--evaluation-tokens", "16",
        "--fail-on", "kl=100",
    )  # fmt: skip
    assert code == 3
    assert "not decided" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["base"], "one model alone"),
        (["base", "respelled"], "its tokenizer is another"),
        (["base", "wider"], f"has {len(VOCABULARY) + 1} logits for a token where the base has {len(VOCABULARY)}"),
        (["base", "gptq"], "quantized by gptq"),
        (["base", "w8a8-unscaled"], SCALE),
        (["base", "near", "--require-sealed"], "--require-sealed"),
        (["base", "near", "--fail-on", "verdict"], "a limit on cards"),
    ],
)
def test_what_cannot_be_compared_is_refused(capsys: Capture, arguments: list[str], message: str) -> None:
    code, out, err = compare(capsys, *arguments)
    errors = err[err.index("error: ") :]
    assert (code, out) == (2, "")
    assert message in errors
    assert len(errors.splitlines()) <= 2


def test_a_tokenizer_with_more_tokens_that_the_text_lacks_will_do(capsys: Capture) -> None:
    assert answer(capsys, "base", "larger")["pairs"][0]["kl"]["mean"]["value"] == 0


def test_models_are_compared_where_that_is_asked_for(capsys: Capture) -> None:
    for model in ("base", "demo"):
        code, _, err = run(capsys, "compare", model, model)
        assert code == 2
        assert f"{model}: is a model" in err


def test_options_of_checkpoints_are_none_of_cards(capsys: Capture) -> None:
    code, _, err = run(capsys, "compare", "base", "near", "--dtype", "auto")
    assert code == 2
    assert "--dtype" in err
    assert "--logits" in err


def test_a_quantized_checkpoint_is_as_far_away_as_verify_says(made: Path, capsys: Capture) -> None:
    found = answer(capsys, "base", "w8a8")
    loaded = load(made / "base")
    rows = load_corpus(str(made / "text.jsonl"))
    readers = TextReaders(tokenizer=loaded.tokenizer)
    corpus = tokenize(rows, readers, vocab_size=len(VOCABULARY), context_length=128, max_length=2048)
    samples = choose(corpus.samples, 300, loaded.tokenizer).samples
    saved = load_saved(made / "w8a8", torch.device("cpu"))
    plan = Plan(name="w8a8", title="", schemes={}, qparams={}, groups=0)
    arithmetic: Arithmetic = "native" if native_products(torch.bfloat16) else "float32"  # as `auto` chooses
    with computed_in(arithmetic, loaded.model):
        row = score_checkpoint(loaded.model, saved, samples, plan)
    pair = found["pairs"][0]
    assert found["text"]["tokens"] == row.tokens
    assert (pair["kl"]["mean"]["value"], pair["top1"]["value"]) == (row.kl, row.top1)
    assert pair["kl"]["by_token"] == json.loads(row.by_token.model_dump_json() if row.by_token else "null")
    assert pair["perplexity"] == row.perplexity
    assert found["models"][1]["quantization"] == "compressed-tensors"
    assert answer(capsys, "w8a8", "base")["pairs"][0]["reverse"]["mean"]["value"] == pytest.approx(row.kl)


def test_the_function_says_what_the_command_says(made: Path, tmp_path: Path, capsys: Capture) -> None:
    found = answer(capsys, "base", "near", "w8a8")
    made_by = quantaudit.compare_logits(
        made / "base", "near", "w8a8", corpus="text.jsonl", evaluation_tokens=300, out=tmp_path / "page"
    )
    pairs = json.loads(made_by.model_dump_json())["pairs"]
    assert (pairs, made_by.outcome) == (found["pairs"], None)
    assert json.loads((tmp_path / "page/compare.json").read_text())["pairs"] == pairs
    assert "Comparison of checkpoints" in (tmp_path / "page/compare.html").read_text()
    with pytest.raises(UsageError, match="batch_size"):
        quantaudit.compare_logits("base", "near", batch_size=3)  # type: ignore[call-arg]
