"""What single modifiers of llm-compressor accept, reach and refuse, asked of llm-compressor itself."""
