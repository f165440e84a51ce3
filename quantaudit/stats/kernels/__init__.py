"""How statistics are gathered where a tensor lies: compiled loops in main memory, torch operations on accelerators."""
