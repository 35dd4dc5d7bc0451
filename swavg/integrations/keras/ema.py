"""The exponential moving average (EMA) of variables while they are trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

from swavg.errors import RequestError
from swavg.integrations.keras.averages import Averages
from swavg.integrations.keras.framework import in_graph, keras, number, ops, required, whole
from swavg.weights import warmup_decay
from swavg.weights.checks import check_decay


class EMA(Averages):
    """The EMA of ``of``, a Keras model or a list of variables, started from them as they are.

        >>> ema = EMA(model, decay=0.999)
        >>> for batch in batches:
        ...     train(batch)
        ...     ema.update()  # after each optimizer step; also inside a tf.function
        >>> with ema.applied():
        ...     evaluate(model)

    Each update is ``a <- a + (1 - decay) (w - a)``. ``decay`` is per update made (with ``every=10``
    only each tenth call makes one): a number, or a function of t, the number of the update
    (1, 2, ...), which in a graph is a float64 tensor. ``warmup`` is a schedule of
    :data:`swavg.weights.WARMUPS`, with ``warmup_options`` as :func:`swavg.weights.warmup_decay`
    takes them. All as in :class:`swavg.training.EMA`.
    """

    def __init__(
        self,
        of: Any,
        decay: float | Callable[[Any], Any] = 0.999,
        *,
        warmup: str | None = None,
        warmup_options: Mapping[str, float] | None = None,
        every: int = 1,
    ) -> None:
        if isinstance(decay, keras.Layer):
            raise RequestError("The decay is a model.", hint="Write EMA(model, decay=0.999).")
        self._options = dict(warmup_options or {})
        if warmup is None and self._options:
            raise RequestError("warmup_options without a warmup.")
        self._decay = decay
        self._decay_in_graphs = number("decay", decay if _is_plain(decay) else 0.0)
        self._traced = False
        self._warmup = warmup
        # Of a mistaken option one learns now, not after the first step.
        self._factor(1)
        settings = {
            "decay": None if callable(decay) else decay, "warmup": warmup, "every": every,
            **{f"warmup_{name}": value for name, value in self._options.items()},
        }  # fmt: skip
        super().__init__(of, 0, every, settings)

    @property
    def decay(self) -> Any:
        """The number or function. It may be set between updates; once it is compiled into a
        ``tf.function``, only from one number to another: else that is a RequestError."""
        return self._decay

    @decay.setter
    def decay(self, decay: float | Callable[[Any], Any]) -> None:
        if self._traced and not (_is_plain(decay) and _is_plain(self._decay)):
            raise RequestError(
                "The decay is compiled into a tf.function: only a number can be set for a number.",
                hint="Start with a function that returns a tf.Variable, and set that.",
            )
        if _is_plain(decay):
            check_decay(decay, one=True)
            self._decay_in_graphs.assign(decay)
        self._decay = decay

    @property
    def num_updates(self) -> int:
        """How many updates were made."""
        return int(whole(self._updates))

    def update(self, step: Any = None) -> None:
        """Average the present values in, at each ``every``-th call.

        ``step``, the number of optimizer steps done, may be given: then an update is made when a
        multiple of ``every`` is reached or passed over, and a step that does not increase is an
        error. Raises RequestError while an average is applied.
        """
        self.advance(step)

    def _factor(self, t: Any) -> Any:
        decay = self._decay(t) if callable(self._decay) else self._decay
        if in_graph():
            self._traced = True
            read = self._decay_in_graphs if _is_plain(self._decay) else decay
            decay = ops.cast(read, "float64")
        elif not _is_plain(decay):
            decay = float(decay)
        with required((decay >= 0) & (decay <= 1), "The decay is not in [0, 1]."):
            if self._warmup is None:
                return 1 - decay
            if in_graph():
                return 1 - _WARMUPS[self._warmup](t, decay, **self._options)
            first = self._warmup == "inverse-gamma"
            return 1 - warmup_decay(self._warmup, t - first, decay, **self._options)


def _is_plain(decay: Any) -> TypeGuard[float]:
    return isinstance(decay, (int, float))


def _tensorflow(t: Any, decay: Any) -> Any:
    return ops.minimum(decay, (1 + t) / (10 + t))


def _inverse_gamma(
    t: Any, decay: Any, gamma: float = 1.0, power: float = 2 / 3, minimum: float = 0.0
) -> Any:
    remembered = 1 - (1 + (t - 1) / gamma) ** -power
    return ops.where(t == 1, 0.0, ops.maximum(minimum, ops.minimum(decay, remembered)))


def _yolo(t: Any, decay: Any, tau: float = 2000.0) -> Any:
    return -decay * ops.expm1(-t / tau)


_WARMUPS = {"tensorflow": _tensorflow, "inverse-gamma": _inverse_gamma, "yolo": _yolo}
"""Those of :data:`swavg.weights.WARMUPS` on tensors; t is the number of the update, from 1 on."""
