"""Mutated inputs for every reader and every verb: `make fuzz`."""
