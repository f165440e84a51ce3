"""What makes the built-in corpus, its data card, the card's JSON Schema and the page of rules: not in the wheel."""
