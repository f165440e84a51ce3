"""Quantized artifacts against the card of their model: what their configuration promises, and what was measured."""

from quantaudit.common.verbs import make_callable

make_callable(__name__)
