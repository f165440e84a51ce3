"""What one can choose: quality against size, and against what keeps its format."""
