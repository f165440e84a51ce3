"""Predicted against actual: llm-compressor runs a recipe, and what it saved is read back and scored."""

from quantaudit.common.verbs import make_callable

make_callable(__name__)
