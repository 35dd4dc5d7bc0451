"""What the callbacks of all frameworks share: when a snapshot is made, and of what."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from swavg.errors import InputError, RequestError
from swavg.formats import open_checkpoint
from swavg.training import EMA, SWA, Snapshots, save_snapshot
from swavg.weights.checks import check_count

_STATE = "ema_state"


def check_arguments(kind: type[EMA] | type[SWA], options: Mapping[str, Any]) -> None:
    """Raise RequestError now for what ``kind`` would refuse when training starts."""
    # On a model without a tensor it costs nothing.
    try:
        inspect.signature(kind).bind(nn.Module(), **options)
    except TypeError as error:
        raise RequestError(f"{kind.__name__}: {error}.") from None
    kind(nn.Module(), **options)


def recipe_of(ema: EMA, step: int) -> dict[str, Any]:
    """How an average came about, for the file that it is saved in."""
    return {
        "method": "training ema",
        "n": ema.num_updates,
        "decay": None if callable(ema.decay) else ema.decay,
        "every": ema.every,
        "step": step,
    }


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


class Recorder:
    """Makes a snapshot of a step once all that was measured at it is known: before the next.

    ``every`` counts optimizer steps; None means after each evaluation.
    """

    def __init__(self, snapshots: Snapshots, every: int | None) -> None:
        if every is not None:
            check_count("every", every)
        self.snapshots = snapshots
        self.measures = True
        self._every = every
        self._step = 0
        self._due = False
        self._pending = False
        self._metrics: dict[str, float] = {}

    def begin(self, step: int) -> None:
        """Training starts, or goes on, at ``step``, of which nothing is to be saved."""
        self._step, self._metrics = step, {}
        self._due = self._pending = False

    def done(self, step: int) -> None:
        """An optimizer step was done, ``step`` in all."""
        if step == self._step:
            return
        # Two optimizers may do two steps at once: the multiple itself may be passed over.
        self._due = self._every is not None and step // self._every > self._step // self._every
        self._step, self._metrics, self._pending = step, {}, self._due

    def measured(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The weights of ``step`` were evaluated."""
        self.done(step)
        if self.measures:
            self._metrics |= {name: float(value) for name, value in metrics.items()}
        # Of a step that has a snapshot already, a new one with what was measured since.
        self._pending = self._every is None or self._due

    def flush(self, model: nn.Module, ema: EMA | None) -> None:
        """Save what is due: the model, or its average. Raises as ``Snapshots.save``."""
        if not self._pending:
            return
        self._pending = False
        if ema is None:
            self.snapshots.save(model, self._step, self._metrics)
        else:
            recipe = recipe_of(ema, self._step)
            views = ema.views(frozen=False)
            self.snapshots.save(views, self._step, self._metrics, recipe=recipe)

    def measure(self, same: bool, best: int | None) -> None:
        """Whether what is evaluated is what is saved: else there are no metrics. RequestError if
        they decide."""
        self.measures = same
        if best and not same:
            raise RequestError(
                "The best snapshots cannot be told: the weights that are evaluated are not those"
                " that are saved.",
                hint="Save the averages with SnapshotCallback(..., ema=callback), or evaluate the"
                " training weights with EMACallback(..., evaluate=False).",
            )
