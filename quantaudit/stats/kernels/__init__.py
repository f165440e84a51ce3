"""How statistics of a tensor are gathered where it lies: compiled loops in main memory, torch operations on an accelerator."""
