"""A fault line made to happen again: from a fault record to a scenario, its run, and the two lines side by side."""
