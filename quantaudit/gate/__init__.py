"""Whether a recipe is safe on a checkpoint, from the checkpoint's card alone."""
