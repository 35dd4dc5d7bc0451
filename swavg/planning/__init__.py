"""Deciding, before anything is read or written, what becomes of every tensor: values only."""
