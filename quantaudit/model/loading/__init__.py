"""From a spec to a model on its device: the class that the checkpoint names, whole, and what it is called."""
