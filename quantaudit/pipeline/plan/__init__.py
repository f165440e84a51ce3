"""What an audit of a model will need, from its configuration alone."""
