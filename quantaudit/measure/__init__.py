"""One pass over a corpus with every site tapped, into a profile."""
