"""A run of five checkpoints, and what averages of it hold."""

import torch
from checkpoints import load, state

STEPS = (10, 20, 30, 40, 100)


def bias(steps, weights=None):
    weights = weights or [1 / len(steps)] * len(steps)
    return sum(w * state(s)["body.bias"].double() for s, w in zip(steps, weights, strict=True))


def assert_bias(path, expected):
    torch.testing.assert_close(load(path)["body.bias"].double(), expected, rtol=1e-6, atol=1e-7)
