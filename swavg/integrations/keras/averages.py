"""An average beside variables: moved towards them, shown in their place, saved as arrays."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any
from weakref import WeakSet

import numpy as np

from swavg.errors import RequestError
from swavg.integrations.keras.framework import compiled, in_graph, keras, ops, required, when, whole
from swavg.integrations.keras.values import (
    array_of,
    differs,
    dtype_of,
    is_number,
    matched,
    name_of,
    wide,
)
from swavg.weights.checks import check_count

_showing: WeakSet[Averages] = WeakSet()
"""The averages that are in some model now."""
_living: WeakSet[Averages] = WeakSet()
"""All that there are."""


class Averages:
    """What :class:`EMA` and :class:`SWA` have in common: one average of the variables of a model,
    or of a list of ``keras.Variable`` or ``tf.Variable``.

    Trainable variables are averaged, in float32 where they are narrower. Other floating-point ones
    (batch-norm statistics, frozen weights) are copied at each update, those that become trainable
    later are averaged from there on, and those that are frozen later still are. Integers and the
    seeds of random layers are left alone. What counts is in variables: so it does in a graph.
    """

    _divides = False
    """Whether a difference is divided by the factor of a move, instead of multiplied."""

    def __init__(self, of: Any, start: int, every: int, settings: Mapping[str, Any]) -> None:
        check_count("start", start, 0)
        check_count("every", every)
        self._of = of if isinstance(of, keras.Layer) else list(of)
        self._first = start
        self.every = every
        self._settings = {name: value for name, value in settings.items() if value is not None}
        self._updates, self._steps, self._shown = (
            keras.Variable(0, dtype="int", trainable=False, autocast=False, name=name)
            for name in ("updates", "steps", "shown")
        )
        self._own: list[Any] | None = None
        self._variables: list[Any] = []
        self._averages: list[Any] = []
        self._start()

    # ---- Following the variables.

    def register(self) -> None:
        """Start again from the variables as they are, with no update made."""
        with self._own_weights_for("start again"):
            self._start()
            self._updates.assign(0)
            self._steps.assign(0)

    def _start(self) -> None:
        # The same average again, which a graph or a checkpoint may know.
        known = {id(v): a for v, a in zip(self._variables, self._averages, strict=True)}
        self._variables = self._find()
        self._averages = []
        for variable in self._variables:
            dtype = wide(variable)
            # A copy: a tf.Variable would become the average itself.
            value = ops.cast(ops.copy(variable), dtype)
            if (average := known.get(id(variable))) is None:
                average = keras.Variable(
                    value, dtype=dtype, trainable=False, autocast=False, name="average"
                )
            else:
                average.assign(value)
            self._averages.append(average)
        self._moved = [False] * len(self._variables)
        self._moves = compiled(self._move)
        self._follow()
        _living.add(self)
        if shown_in(self._variables):
            self._shown.assign(1)

    def _given(self) -> Iterable[Any]:
        return self._of.weights if isinstance(self._of, keras.Layer) else self._of

    def _find(self) -> list[Any]:
        averaged = (v for v in self._given() if is_number(v))
        variables = list({id(v): v for v in averaged}.values())
        if not variables:
            raise RequestError(
                "There is no floating-point variable to average.",
                hint="Build the model first: call it once, or model.build(shape).",
            )
        return variables

    def _follow(self) -> None:
        """See which variables are trainable now. Raises RequestError if they are others."""
        if list(map(id, self._variables)) != list(map(id, self._find())):
            raise RequestError(
                "The model has other variables than when its average was begun.",
                hint="Call register() to begin again with them.",
            )
        self._moved = [
            before or (v.trainable and not getattr(v, "overwrite_with_gradient", False))
            for before, v in zip(self._moved, self._variables, strict=True)
        ]

    # ---- Updates.

    @property
    def steps(self) -> int:
        """How many steps were done."""
        return int(whole(self._steps))

    def skip_to(self, step: int) -> None:
        """Count from ``step``, without an update."""
        self._steps.assign(step)

    def advance(self, step: Any = None) -> None:
        """Note that ``step`` steps were done in all (None: one more), and make an update if, after
        the ``start``, a multiple of ``every`` is reached or passed over."""
        with self._own_weights_for("update"):
            before = whole(self._steps)
            now = before + 1 if step is None else whole(step)
            # Those of another loop may count from 0.
            with required((now > before) | ((now == 0) & (before == 0)), "steps must increase."):
                passed = (now - self._first) // self.every
                known = (before - self._first) // self.every
                when((passed > 0) & (passed > known), self._update, lambda: None)
                self._steps.assign(now)

    def _update(self) -> None:
        self._follow()
        t = whole(self._updates) + 1
        factor = self._factor(ops.cast(t, "float64") if in_graph() else t)
        self._moves(factor, tuple(self._moved))
        self._updates.assign(t)

    @abstractmethod
    def _factor(self, t: Any) -> Any:
        """That of update ``t`` (1, 2, ...), from an int a number; 1 copies. In a graph ``t`` is a
        float64 tensor, and the factor may be one."""

    def _move(self, factor: Any, moved: tuple[bool, ...]) -> None:
        by = ops.divide if self._divides else ops.multiply

        def assign(*, copy: bool) -> None:
            for variable, average, moves in zip(
                self._variables, self._averages, moved, strict=True
            ):
                value = ops.cast(variable, average.dtype)
                if moves and not copy:
                    difference = ops.subtract(value, average)
                    value = ops.add(average, by(difference, ops.cast(factor, average.dtype)))
                # A copy: JAX donates what a model has to its next step.
                average.assign(ops.copy(value))

        when(factor == 1, lambda: assign(copy=True), lambda: assign(copy=False))

    # ---- Showing.

    @property
    def is_applied(self) -> bool:
        """True while the variables have the averaged values."""
        return self._own is not None

    def apply_shadow(self) -> None:
        """Give the variables the averaged values, until :meth:`restore`. Raises RequestError if
        they have them already, or those of another average."""
        if in_graph():
            raise RequestError("Apply and restore averages outside of a tf.function.")
        with self._own_weights_for("apply an average"):
            self._follow()
            # Kept before anything changes: an interrupt may come between any two lines.
            self._own = [ops.copy(variable) for variable in self._variables]
            _showing.add(self)
            _tell_graphs()
            for variable, average in zip(self._variables, self._averages, strict=True):
                variable.assign(ops.cast(ops.copy(average), dtype_of(variable)))

    def restore(self) -> None:
        """Give the variables their own values back. What was written to statistics meanwhile stays
        with the average, until the next update. RequestError, when all is restored, if a trainable
        one was written to."""
        if self._own is None:
            raise RequestError(
                "The model has its own weights: there is nothing to restore.",
                hint="Apply the average first, or use the with statement.",
            )
        written = []
        columns = self._variables, self._averages, self._moved, self._own
        for variable, average, moved, own in zip(*columns, strict=True):
            if not moved:
                average.assign(ops.cast(ops.copy(variable), average.dtype))
            elif differs(variable, ops.cast(average, dtype_of(variable))):
                written.append(name_of(variable))
            variable.assign(own)
        self._own = None
        _showing.discard(self)
        _tell_graphs()
        if written:
            raise RequestError(
                f"'{written[0]}' changed while the model had the averaged weights: it has its own"
                " back.",
                hint="Train, and load weights, outside of the block (or before restore()).",
            )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The variables have the averaged values in the block, and their own again after it, also
        after an error."""
        self.apply_shadow()
        try:
            yield
        except BaseException:
            # It is the one to be seen; the weights are back in any case.
            with suppress(RequestError):
                self.restore()
            raise
        self.restore()

    def hand_over(self) -> None:
        """The averaged values are the model's from now on: other averages follow them."""
        _showing.discard(self)
        _tell_graphs()

    def _own_weights_for(self, act: str) -> AbstractContextManager[Any]:
        """For what is done while the model has its own values: RequestError if it has averages."""
        message = f"Cannot {act}: the model has averaged weights now. Restore its own first."
        if not in_graph() and shown_in(self._variables):
            raise RequestError(message)
        # The graph that is traced now may run while they are applied, and when they are no more.
        return required(whole(self._shown) == 0, message)

    # ---- Values and state.

    @property
    def variables(self) -> list[Any]:
        """The averages and counters themselves, to be saved with the rest of a
        ``tf.train.Checkpoint(model=model, averages=ema.variables)``."""
        return [*self._averages, self._updates, self._steps]

    def averaged(self) -> list[np.ndarray[Any, Any]]:
        """The averaged values as arrays, for ``set_weights`` of the model: one for each of its
        weights, in that order. What has no average is the model's own."""
        averages = dict(zip(map(id, self._variables), self._averages, strict=True))
        return [array_of(averages.get(id(variable), variable)) for variable in self._given()]

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on bit for bit: arrays, numbers and words, for ``np.savez(path,
        **state)``. It may be taken while the average is applied."""
        arrays = {
            f"{'averages' if moved else 'copies'}/{i}/{name_of(variable)}": array_of(average)
            for i, (variable, average, moved) in enumerate(
                zip(self._variables, self._averages, self._moved, strict=True)
            )
        }
        counts = {"updates": int(whole(self._updates)), "steps": self.steps}
        return {"version": 1, "kind": type(self).__name__, **counts, **self._settings, **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, or what ``np.load`` reads of it. Warns of other
        settings, and goes on with these. Raises MismatchError, with nothing changed, for other
        variables."""
        plain = {name: np.asarray(state[name]).item() for name in state if "/" not in name}
        kind = type(self).__name__
        try:
            fits = (plain.pop("kind"), plain.pop("version")) == (kind, 1)
            updates, steps = plain.pop("updates"), plain.pop("steps")
        except KeyError:
            fits = False
        if not fits:
            raise RequestError(
                f"This is no state dict of {kind} that this swavg reads.",
                hint=f"Load what {kind}.state_dict() returned.",
            )
        with self._own_weights_for("load a state"):
            self._follow()
            for i, (averaged, array) in enumerate(matched(state, self._variables)):
                self._averages[i].assign(array)
                self._moved[i] = self._moved[i] or averaged
            self._updates.assign(updates)
            self._steps.assign(steps)
        for name in sorted(plain.keys() | self._settings):
            if (before := plain.get(name)) != (now := self._settings.get(name)):
                warnings.warn(
                    f"The state was made with {name} {before}; it goes on with {now}.",
                    stacklevel=2,
                )


def shown_in(variables: Iterable[Any]) -> bool:
    """Whether any of these has an averaged value now."""
    ids = set(map(id, variables))
    return any(not ids.isdisjoint(map(id, each._variables)) for each in _showing)


def _tell_graphs() -> None:
    """Let each graph know whether the variables that its average follows are averaged now."""
    for each in _living:
        each._shown.assign(int(each.is_applied or shown_in(each._variables)))
