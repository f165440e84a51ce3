"""Rules about an artifact, by what they look at."""
