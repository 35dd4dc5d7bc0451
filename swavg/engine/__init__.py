"""Doing what a plan says: averages, kernels, executors, and what is reported of a run."""
