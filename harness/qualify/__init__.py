"""A matrix of scenarios and points run as a whole, kept, compared with an earlier one: ``harness qualify``."""
