"""Planning: what is to be computed and written, as values."""
