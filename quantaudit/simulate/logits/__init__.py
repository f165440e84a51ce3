"""The whole model under a recipe: KL, agreement and perplexity of its next-token distribution."""
