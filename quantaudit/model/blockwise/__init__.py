"""A model run block by block, for all batches at once, so that the weights of one block are in memory at a time."""
