"""Card → rows: the look-ups and orderings that charts and templates share."""
