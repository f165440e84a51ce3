"""Which samples are the text of another one, wholly or nearly: what repeats is no further evidence."""
