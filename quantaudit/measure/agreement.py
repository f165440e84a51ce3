"""Whether two records are of one model and of one text: what differs between them, in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from quantaudit.provenance import CorpusInfo, EnvironmentInfo, InputPart, ModelInfo

TEXT_PARTS: tuple[InputPart, ...] = ("tokenizer", "chat_template", "processor")
"""What stands between text and token ids."""
_SHOWN = 4


def model_differences(a: ModelInfo, b: ModelInfo, read_by: Collection[InputPart] = TEXT_PARTS) -> list[str]:
    """What two models differ in, of all that a measurement depends on: names of files and settings; empty if nothing.

    read_by: what the text went through on its way to token ids. Records that do not name a part, as older ones do, do
    not differ in it.
    """
    if a.fingerprint != b.fingerprint:
        return [f"weights ({_files(a.files, b.files)})" if a.files and b.files else "weights"]
    if a.inputs is None or b.inputs is None:
        return [] if a.config_sha256 == b.config_sha256 else ["config.json"]
    differences = []
    if a.inputs.config != b.inputs.config:
        differences.append(f"config.json: {_keys(a.inputs.settings, b.inputs.settings)}")
    if a.inputs.code != b.inputs.code:
        differences.append("Python code of the checkpoint")
    if "tokenizer" in read_by and a.inputs.tokenizer != b.inputs.tokenizer:
        files = _keys(a.inputs.tokenizer_files, b.inputs.tokenizer_files)
        differences.append(f"tokenizer ({files})" if files else "tokenizer")
    if "chat_template" in read_by and a.inputs.chat_template != b.inputs.chat_template:
        differences.append("chat template")
    if "processor" in read_by and a.inputs.processor != b.inputs.processor:
        differences.append("image processor")
    return differences


def corpus_differences(a: CorpusInfo, b: CorpusInfo) -> list[str]:
    """What two texts differ in, or how they were cut, split and tokenized; empty where they are one."""
    if a.sha256 != b.sha256:
        return [f"corpus ({a.name}, {a.sha256[:12]}; {b.name}, {b.sha256[:12]})"]
    settings = ("samples", "max_length", "seed", "special_tokens", "tokenizer", "tokenizer_sha256")
    return [
        f"{name} of the corpus ({getattr(a, name)}; {getattr(b, name)})"
        for name in (*settings, "tokens")
        if getattr(a, name) != getattr(b, name)
    ]


def run_differences(a: EnvironmentInfo, b: EnvironmentInfo) -> list[str]:
    """What two runs over one text differ in that changes numbers; empty where nothing does."""
    return [
        f"{name} ({getattr(a, name)}; {getattr(b, name)})"
        for name in ("device", "attention", "arithmetic", "batch_size", "batch_tokens", "seed")
        if getattr(a, name) != getattr(b, name)
    ]


def _files(a: Mapping[str, str], b: Mapping[str, str]) -> str:
    return _keys(a, b) or "order of the files"


def _keys(a: Mapping[str, str], b: Mapping[str, str]) -> str:
    """Keys whose values differ, or that one side alone has, the first few of them."""
    keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
