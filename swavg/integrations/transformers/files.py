"""The file in which an average lies beside the Trainer's checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from swavg.errors import InputError
from swavg.formats import open_checkpoint
from swavg.training import save_snapshot

_STATE = "ema_state"


def save_state(
    path: str,
    state: Mapping[str, Any],
    averaged: Mapping[str, Tensor],
    step: int,
    recipe: Mapping[str, Any] | None,
) -> None:
    """Write the ``averaged`` weights as a snapshot, with all else of ``state`` as metadata."""
    if not averaged:
        # No snapshot is empty, and the state is to be kept all the same.
        averaged = {"nothing averaged yet": torch.zeros(0)}
    names = sorted(state["averages"])
    more = {_STATE: json.dumps({**state, "averages": names})}
    save_snapshot(path, averaged, step=step, recipe=recipe, metadata=more, force=True)


def load_state(path: str) -> dict[str, Any]:
    """The state that :func:`save_state` wrote. Raises InputError."""
    text = open_checkpoint(path).metadata.get(_STATE)
    if text is None:
        raise InputError(path, "holds no average that can be continued")
    try:
        state = json.loads(text)
        tensors = load_file(path)
        return {**state, "averages": {name: tensors[name] for name in state["averages"]}}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(path, f"its state of an average is broken: {error}") from None
