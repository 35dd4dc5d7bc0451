"""The arithmetic of a block: weighted sums of floats, rules for integers."""
