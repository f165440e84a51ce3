"""The text that is run through a model: reading it, splitting it, turning it into tokens. Imports no torch."""
