"""An average beside variables: moved towards them, shown in their place, saved as arrays."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

import numpy as np

from swavg.errors import RequestError
from swavg.integrations.keras.arrays import array_of, matched, name_of, pack
from swavg.integrations.keras.framework import counter, in_graph, keras, ops, require, whole

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
    seeds of random layers are left alone.
    """

    _divides = False
    """Whether a difference is divided by the factor of a move, instead of multiplied."""

    def __init__(self, of: Any, counters: Iterable[str], settings: Mapping[str, Any]) -> None:
        self._of = of if isinstance(of, keras.Layer) else list(of)
        self._settings = {name: value for name, value in settings.items() if value is not None}
        self._counters = {name: counter(name) for name in counters}
        self._shown = counter("shown")
        self._own: list[Any] | None = None
        self._variables: list[Any] = []
        self._averages: list[Any] = []
        self._start()

    # ---- Following the variables.

    def register(self) -> None:
        """Start again from the variables as they are, with no update made."""
        self._forbid_shown("start again")
        self._start()
        for each in self._counters.values():
            each.assign(0)

    def _start(self) -> None:
        known = {id(v): a for v, a in zip(self._variables, self._averages, strict=True)}
        self._variables = self._find()
        self._averages = []
        for variable in self._variables:
            average = known.get(id(variable))
            if average is None:
                # A copy: a tf.Variable would become the average itself.
                value = ops.cast(ops.copy(variable), _wide(variable))
                average = keras.Variable(
                    value, dtype=_wide(variable), trainable=False, autocast=False, name="average"
                )
            else:
                average.assign(ops.cast(ops.copy(variable), average.dtype))
            self._averages.append(average)
        self._moved = [False] * len(self._variables)
        self._moves = _compiled(self._move)
        self._follow()
        _living.add(self)
        if _shown_in(self._variables):
            self._shown.assign(1)

    def _given(self) -> Iterable[Any]:
        return self._of.weights if isinstance(self._of, keras.Layer) else self._of

    def _find(self) -> list[Any]:
        averaged = (v for v in self._given() if _dtype(v).startswith(_AVERAGED))
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
        moved = [
            before or (v.trainable and not getattr(v, "overwrite_with_gradient", False))
            for before, v in zip(self._moved, self._variables, strict=True)
        ]
        if moved != self._moved:
            self._moved = moved
            self._moves = _compiled(self._move)

    def _advance(self, factor: Any) -> None:
        """Move the averages by ``factor`` (a number, or a tensor in a graph); 1 is a copy."""
        self._follow()
        moves = self._moves
        if isinstance(factor, (int, float)):
            moves(factor, factor == 1)
        else:
            # One choice for all variables: one for each takes as long as all the rest.
            copies = ops.equal(factor, 1)
            ops.cond(copies, lambda: moves(factor, True), lambda: moves(factor, False))

    def _move(self, factor: Any, copies: bool) -> None:
        for variable, average, moved in self._triples():
            value = ops.cast(variable, average.dtype)
            if moved and not copies:
                by = ops.divide if self._divides else ops.multiply
                step = by(ops.subtract(value, average), ops.cast(factor, average.dtype))
                value = ops.add(average, step)
            # A copy: JAX donates what a model has to its next step.
            average.assign(ops.copy(value))

    def _triples(self) -> Iterator[tuple[Any, Any, bool]]:
        return zip(self._variables, self._averages, self._moved, strict=True)

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
        self._forbid_shown("apply an average")
        self._follow()
        # Kept before anything changes: an interrupt may come between any two lines.
        self._own = [ops.copy(variable) for variable in self._variables]
        _showing.add(self)
        _tell_graphs()
        for variable, average, _ in self._triples():
            variable.assign(ops.cast(ops.copy(average), _dtype(variable)))

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
        for (variable, average, moved), own in zip(self._triples(), self._own, strict=True):
            if not moved:
                average.assign(ops.cast(ops.copy(variable), average.dtype))
            elif _differs(variable, ops.cast(average, _dtype(variable))):
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

    def _forbid_shown(self, act: str, value: Any = None) -> Any:
        """``value``, unless averages are shown: then RequestError."""
        message = f"Cannot {act}: the model has averaged weights now. Restore its own first."
        if in_graph():
            # The graph may run while they are applied.
            value = require(ops.equal(self._shown, 0), message, value)
        elif _shown_in(self._variables) or self.is_applied:
            raise RequestError(message)
        return value

    # ---- Values and state.

    @property
    def variables(self) -> list[Any]:
        """The averages and counters themselves, to be saved with the rest of a
        ``tf.train.Checkpoint(model=model, averages=ema.variables)``."""
        return [*self._averages, *self._counters.values()]

    def averaged(self) -> list[np.ndarray[Any, Any]]:
        """The averaged values as arrays, for ``set_weights`` of the model: one for each of its
        weights, in that order. What has no average is the model's own."""
        averages = dict(zip(map(id, self._variables), self._averages, strict=True))
        return [array_of(averages.get(id(variable), variable)) for variable in self._given()]

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on bit for bit: arrays, numbers and words, for ``np.savez(path,
        **state)``. It may be taken while the average is applied."""
        arrays = pack(self._triples())
        counts = {name: whole(each) for name, each in self._counters.items()}
        return {"version": 1, "kind": type(self).__name__, **counts, **self._settings, **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, or what ``np.load`` reads of it. Warns of other
        settings, and goes on with these. Raises MismatchError, with nothing changed, for other
        variables."""
        self._forbid_shown("load a state")
        plain = {name: np.asarray(state[name]).item() for name in state if "/" not in name}
        kind = type(self).__name__
        if (plain.get("kind"), plain.get("version")) != (kind, 1) or self._counters.keys() - plain:
            raise RequestError(
                f"This is no state dict of {kind} that this swavg reads.",
                hint=f"Load what {kind}.state_dict() returned.",
            )
        self._follow()
        for i, (was_averaged, array) in enumerate(matched(state, self._variables)):
            self._averages[i].assign(array)
            self._moved[i] = self._moved[i] or was_averaged
        self._moves = _compiled(self._move)
        for name, each in self._counters.items():
            each.assign(plain.pop(name))
        given = {name: plain[name] for name in plain.keys() - {"kind", "version"}}
        for name in sorted(given.keys() | self._settings):
            if given.get(name) != self._settings.get(name):
                warnings.warn(
                    f"The state was made with {name} {given.get(name)}; it goes on with"
                    f" {self._settings.get(name)}.",
                    stacklevel=2,
                )


def shows_average(model: Any) -> bool:
    """Whether the model has averaged values now."""
    return _shown_in(model.weights)


def _shown_in(variables: Iterable[Any]) -> bool:
    ids = set(map(id, variables))
    return any(not ids.isdisjoint(map(id, each._variables)) for each in _showing)


def _tell_graphs() -> None:
    """Let each graph know whether the variables that its average follows are averaged now."""
    for each in _living:
        each._shown.assign(int(each.is_applied or _shown_in(each._variables)))


_AVERAGED = ("float", "bfloat", "complex")


def _compiled(move: Any) -> Any:
    if keras.backend.backend() != "tensorflow":
        return move
    import tensorflow as tf

    compiled = tf.function(move, autograph=False)
    # A tensor, or else each number would be another graph.
    return lambda factor, copies: compiled(tf.cast(factor, tf.float64), copies)


def _dtype(variable: Any) -> str:
    return str(keras.backend.standardize_dtype(variable.dtype))


def _wide(variable: Any) -> str:
    dtype = _dtype(variable)
    return dtype if dtype in ("float32", "float64") or dtype.startswith("complex") else "float32"


def _differs(variable: Any, value: Any) -> bool:
    """Whether any element is another; NaN is none."""
    unequal = ops.not_equal(variable, value)
    return bool(ops.any(ops.logical_and(unequal, ops.equal(variable, variable))))
