"""llm-compressor recipes: read, resolved on a model's modules, and judged against a card."""
