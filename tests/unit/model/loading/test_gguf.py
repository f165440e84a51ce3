"""A GGUF is parsed once, to what gguf's own reader and transformers make of it, and nothing is held afterwards."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from quantaudit.errors import ModelError
from quantaudit.model.loading import gguf as once
from quantaudit.model.loading.checkpoint import locate
from quantaudit.model.loading.load import load_config, load_model

WIDTH, HEADS, INNER, VOCABULARY = 32, 4, 64, 64


def write_llama(path: Path) -> Path:
    """A language model of one layer with a vocabulary of single characters, quantized to Q8_0 where that divides."""
    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    tokens = ["<s>", "</s>", *(chr(ord("A") + i) for i in range(VOCABULARY - 4)), "AB", "BC"]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["A B", "B C"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {"token_embd": (VOCABULARY, WIDTH), "output_norm": (WIDTH,), "output": (VOCABULARY, WIDTH)}
    shapes |= {f"blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (INNER, WIDTH), "blk.0.ffn_up": (INNER, WIDTH), "blk.0.ffn_down": (WIDTH, INNER)}
    shapes |= {"blk.0.attn_norm": (WIDTH,), "blk.0.ffn_norm": (WIDTH,)}
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, shape in shapes.items():
        values = generator.normal(size=shape).astype(np.float32)
        if len(shape) == 2:
            writer.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", values)
    _close(writer)
    return path


def write_fields(path: Path, endianess: gguf.GGUFEndian) -> Path:
    """A file with a field of every type and with arrays of all of them."""
    writer = gguf.GGUFWriter(path, "llama", endianess=endianess)
    writer.add_string("string", "één")
    writer.add_array("strings", ["", "a", "größer", "日本語", "x" * 1000])
    writer.add_array("integers", [1, -2, 3])
    writer.add_array("numbers", [0.5, -1.25])
    writer.add_array("flags", [True, False])
    writer.add_array("bytes", b"abc")
    for add, value in (("uint8", 200), ("int16", -300), ("uint32", 7), ("uint64", 1 << 40), ("float64", 0.1)):
        getattr(writer, f"add_{add}")(add, value)
    writer.add_bool("flag", True)
    writer.add_tensor("one.weight", np.arange(64, dtype=np.float32).reshape(2, 32))
    _close(writer)
    return path


def _close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.mark.parametrize("endianess", list(gguf.GGUFEndian))
def test_every_field_and_tensor_is_what_gguf_reads(tmp_path: Path, endianess: gguf.GGUFEndian) -> None:
    path = write_fields(tmp_path / "fields.gguf", endianess)
    ours, theirs = once.QuickReader(path), gguf.GGUFReader(path)
    assert list(ours.fields) == list(theirs.fields)
    for name, field in theirs.fields.items():
        assert ours.fields[name].types == field.types
        assert ours.fields[name].contents() == field.contents()
    assert ours.fields["strings"].contents(2) == "größer"
    assert [tensor.name for tensor in ours.tensors] == ["one.weight"]
    assert np.array_equal(ours.tensors[0].data, theirs.tensors[0].data)


def test_a_model_is_loaded_from_one_parse(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Any] = []
    original = once.QuickReader.__init__
    monkeypatch.setattr(once.QuickReader, "__init__", lambda self, path: parsed.append(path) or original(self, path))
    loaded = load_model(locate(str(llama)), device=torch.device("cpu"))
    assert len(parsed) == 1
    assert loaded.info.dtype == "bfloat16"


def test_weights_settings_and_tokenizer_are_those_of_transformers_alone(llama: Path) -> None:
    loaded = load_model(locate(str(llama)), device=torch.device("cpu"))
    alone = AutoModelForCausalLM.from_pretrained(llama.parent, gguf_file=llama.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(llama.parent, gguf_file=llama.name)
    expected, actual = alone.state_dict(), loaded.model.state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert loaded.model.config.to_dict() == alone.config.to_dict()
    assert loaded.tokenizer.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_a_file_that_was_cut_short_anywhere_says_so(llama: Path, tmp_path: Path) -> None:
    whole = llama.read_bytes()
    for number, length in enumerate(np.linspace(5, len(whole) - 1, 40, dtype=int)):
        part = tmp_path / f"{number}.gguf"
        part.write_bytes(whole[:length])
        with once.parsed_once(), pytest.raises(ModelError, match="GGUF file is cut short, or damaged") as refused:
            gguf.GGUFReader(part)
        assert refused.value.where == str(part)


def test_the_reader_is_gguf_s_own_again_and_nothing_is_held(llama: Path) -> None:
    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    with once.parsed_once(), once.parsed_once():
        held = weakref.ref(gguf.GGUFReader(llama))
        assert gguf.GGUFReader(str(llama)) is held()
        assert gguf.get_tensor_name_map is not names
    gc.collect()
    assert held() is None
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == (reader, names)


def test_the_reader_is_gguf_s_own_again_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    reader = gguf.GGUFReader
    with pytest.raises(ModelError, match="GGUF file is cut short, or damaged"):
        load_config(locate(str(path)))
    assert gguf.GGUFReader is reader


def test_a_file_that_has_changed_is_parsed_again(tmp_path: Path) -> None:
    path = write_fields(tmp_path / "fields.gguf", gguf.GGUFEndian.LITTLE)
    with once.parsed_once():
        before = gguf.GGUFReader(path)
        write_llama(path)
        assert gguf.GGUFReader(path).fields.keys() != before.fields.keys()


def test_no_bar_of_transformers_is_drawn_over_ours(capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import modeling_gguf_pytorch_utils as theirs

    before = theirs.tqdm
    with once.parsed_once():
        assert list(theirs.tqdm([1, 2])) == [1, 2]
    assert theirs.tqdm is before
    assert capfd.readouterr().err == ""
