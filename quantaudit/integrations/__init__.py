"""quantaudit inside other people's tools: llm-compressor's recipes and Optimum's command line."""
