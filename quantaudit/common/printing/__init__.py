"""How text leaves the program: names and texts that others wrote do nothing to a terminal, and streams may be gone."""
