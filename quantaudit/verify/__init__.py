"""Predicted against actual: llm-compressor runs a recipe, and what it saved is read back and scored."""
