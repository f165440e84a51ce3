"""A live model that computes as if it were quantized, for as long as a context lasts."""
