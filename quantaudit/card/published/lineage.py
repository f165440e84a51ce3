"""Which models belong together: by what their architecture is called, whatever a checkpoint is named."""

from __future__ import annotations

import re

_MIXTURE = re.compile(r"_?moe(?=_|$)")


def is_mixture(model_type: str) -> bool:
    """Whether a type of model says by its name that it routes tokens to experts. GPT-OSS says so nowhere."""
    return _MIXTURE.search(model_type) is not None or model_type == "gpt_oss"


def lineage(model_type: str) -> str:
    """A type of model without what says mixture or text, so that a mixture and its dense sibling have one."""
    return _MIXTURE.sub("", model_type).removesuffix("_text") or model_type
