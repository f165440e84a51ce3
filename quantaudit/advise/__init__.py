"""A better recipe: the least change whose predicted cost is accepted, simulated before it is given."""
