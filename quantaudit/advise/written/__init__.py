"""Advised recipes as text that llm-compressor reads, checked before they are given."""
