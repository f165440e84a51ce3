"""Profile and simulation → the card's sections, one question a file."""
