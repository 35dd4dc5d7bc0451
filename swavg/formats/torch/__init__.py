"""Torch checkpoints, zip and legacy, read without torch and without running anything of them."""
