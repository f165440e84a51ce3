"""The product's verbs as Python functions, one a file: what the command line does, with objects instead of files."""
