"""Rules and policies → findings and the verdict."""
