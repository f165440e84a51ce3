"""Files that others wrote, read within limits: of size, depth, time. Every limit is named where it refuses."""
