"""Quantized artifacts against the card of their model: what their configuration promises, and what was measured."""
