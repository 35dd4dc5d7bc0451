"""The user's own model and data: batch-norm statistics of an average, and the loss around
checkpoints."""
