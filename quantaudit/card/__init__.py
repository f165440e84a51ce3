"""The activation card: its data model, how it is built, and how it is rendered. Imports no torch."""
