"""Card → the look-ups and orderings that charts and templates share, each made once. Nothing is drawn here."""
