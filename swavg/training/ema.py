"""The exponential moving average (EMA) of a model while it trains."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from operator import index
from typing import Any, Unpack

from torch import nn

from swavg.errors import RequestError
from swavg.training.averages import Averages
from swavg.training.foreign import averages_in, count_in
from swavg.training.moving import lerp
from swavg.training.rules import Options
from swavg.weights import warmup_decay
from swavg.weights.checks import check_count, check_decay


class EMA(Averages):
    """The EMA of ``model``'s weights, started from the model as it is.

        >>> ema = EMA(model, decay=0.999)
        >>> for batch in batches:
        ...     train(batch)
        ...     ema.update()  # after each optimizer step
        >>> with ema.applied():
        ...     evaluate(model)

    Each update is ``a <- a + (1 - decay) (w - a)``, one fused call for all tensors of a device and
    dtype. ``decay`` is per update made: with ``every=10`` only each tenth call makes one.

    - ``warmup``: a schedule of :data:`swavg.weights.WARMUPS`, with ``warmup_options`` as
      :func:`swavg.weights.warmup_decay` takes them. The first update has t = 1; with
      ``inverse-gamma`` t = 0, a copy of the model.
    - ``device``: where the averages lie, such as ``"cpu"``. Unless given, beside the model.
    - Averages of float16 and bfloat16 weights are float32: with a decay of 0.999 a bfloat16
      average would never move. They are rounded where they are applied.
    - ``decay``: a number, or a function of t, the number of the update (1, 2, ...); it may be set
      between updates. 1 leaves the average as it is; with ``warmup`` the schedule alone counts.
    - ``buffers``: with ``"copy"`` batch-norm statistics are the model's at each update, and other
      buffers stay the model's own; ``"average"`` averages all but integers and the vectors of
      spectral norm. What is equal stays (a mask of -inf). Buffers outside the state dict are not
      touched.
    - ``in_place``: averages are shown by writing them into the model's memory, whose addresses
      stay (CUDA graphs, models shared between processes), instead of exchanging memory.
    - ``frozen``: a parameter that has never required a gradient takes no memory and no time; its
      average is its own value. One that requires it later starts at the first update after; one
      that is frozen later is averaged on. ``"average"`` averages all from the start: for frozen
      weights that change all the same, as those of a momentum encoder.
    - Tied parameters are one. Those that come, go or change their shape make :meth:`update` raise;
      :meth:`refresh` goes on with them.

    Works on models that are compiled, in DDP, or sharded by FSDP2 (build it after ``fully_shard``;
    each rank averages its own part). Names are those of the model without wrappers.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float | Callable[[int], float] = 0.999,
        *,
        warmup: str | None = None,
        warmup_options: Mapping[str, float] | None = None,
        every: int = 1,
        **options: Unpack[Options],
    ) -> None:
        check_count("every", every)
        self.decay = decay
        self.every = every
        self._warmup = warmup
        self._options = dict(warmup_options or {})
        if warmup is None and self._options:
            raise RequestError("warmup_options without a warmup.")
        self.num_updates = 0
        """How many updates were made."""
        self.step: int | None = None
        """The step that the last call of :meth:`update` was given."""
        self._calls = 0
        # Of a mistaken option one learns now, not after the first step.
        self.next_decay()
        super().__init__(model, **options)

    @classmethod
    def from_averages(
        cls,
        model: nn.Module,
        state: Mapping[str, Any],
        decay: float | Callable[[int], float] = 0.999,
        *,
        num_updates: int | None = None,
        **options: Any,
    ) -> EMA:
        """An EMA of ``model`` that goes on from averages of another library: the ``state_dict()``
        of torch's ``AveragedModel``, timm's ``ModelEmaV3``, torch_ema's
        ``ExponentialMovingAverage`` or ema-pytorch's ``EMA``, or of a model. ``options`` are those
        of :class:`EMA`; ``num_updates`` is how many updates made the averages, where the state does
        not say. Warns if it says another decay. Raises RequestError and MismatchError if they are
        of another model, and RequestError if the decay depends on a number that is not known.
        """
        averages = averages_in(state, model)
        ema = cls(model, decay, **options)
        if num_updates is None:
            num_updates = count_in(state, needed=ema._warmup is not None or callable(decay))
        check_count("num_updates", num_updates, 0)
        ema.adopt(averages)
        if isinstance(state.get("decay"), float):
            warn_of_settings(state, {"decay": ema._settings()["decay"]})
        ema.num_updates = ema._calls = num_updates
        return ema

    def next_decay(self) -> float:
        """The decay that the next update uses."""
        t = self.num_updates + 1
        decay = self.decay(t) if callable(self.decay) else self.decay
        check_decay(decay, one=True)
        if self._warmup is None:
            return decay
        return warmup_decay(
            self._warmup, t - (self._warmup == "inverse-gamma"), decay, **self._options
        )

    def update(self, step: int | None = None) -> None:
        """Average the model's present weights in, at each ``every``-th call.

        ``step``, the number of optimizer steps done, may be given: then an update is made when a
        multiple of ``every`` is reached or passed over, and a step that does not increase (one that
        is done twice) is an error. Raises RequestError while the average is applied, and if the
        model's parameters are no longer the same.
        """
        self.forbid_applied("update")
        step = None if step is None else _whole(step)
        if step is not None and self.step is not None and step <= self.step:
            raise RequestError(f"Step {step} comes after step {self.step}: steps must increase.")
        before = self._calls if step is None else (self.step or 0)
        now = self._calls + 1 if step is None else step
        if now // self.every > before // self.every:
            self.move(partial(lerp, weight=1 - self.next_decay()))
            self.num_updates += 1
        self._calls += 1
        self.step = self.step if step is None else step

    def register(self) -> None:
        """Start again from the model as it is, with no update made."""
        super().register()
        self.num_updates = 0
        self.step = None
        self._calls = 0

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on bit for bit; ``torch.load`` reads it with ``weights_only``.
        It may be taken while the average is applied.

        Like a module's, it holds the averages themselves and not copies. Under FSDP2 a collective:
        every rank gets whole tensors, which another number of ranks can load.
        """
        return {
            "version": 1,
            **self._settings(),
            "num_updates": self.num_updates,
            "calls": self._calls,
            "step": self.step,
            **self.averages_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`. Warns if it was made with another decay or schedule, and
        goes on with this one's. Raises MismatchError, naming them, for other names and shapes."""
        check_state(state, "EMA", {*self._settings(), "num_updates", "calls", "step"})
        self.load_averages(state)
        warn_of_settings(state, self._settings())
        self.num_updates = int(state["num_updates"])
        self._calls = int(state["calls"])
        self.step = state["step"]

    def _settings(self) -> dict[str, Any]:
        # Not NumPy's numbers, which torch.load() takes for objects.
        return {
            "decay": None if callable(self.decay) else float(self.decay),
            "warmup": self._warmup,
            "warmup_options": {name: float(value) for name, value in self._options.items()},
            "every": int(self.every),
        }

    def facts(self) -> Mapping[str, object]:
        return {**self._settings(), "num_updates": self.num_updates}

    def __repr__(self) -> str:
        decay = "..." if callable(self.decay) else self.decay
        schedule = "" if self._warmup is None else f", warmup={self._warmup!r}"
        return f"EMA(decay={decay}{schedule}, num_updates={self.num_updates})"


def _whole(step: object) -> int:
    try:
        return index(step)  # type: ignore[arg-type]
    except TypeError:
        raise RequestError(
            f"The step given to update() is a {type(step).__name__}, not a whole number.",
            hint="The EMA knows its model: call ema.update() or ema.update(step).",
        ) from None


def check_state(state: Mapping[str, Any], kind: str, needed: set[str]) -> None:
    """Raise RequestError unless ``state`` has the entries of a state dict of ``kind``."""
    lacking = sorted({"averages", "own", *needed} - set(state))
    if lacking:
        inside = (name for name, value in state.items() if isinstance(value, Mapping))
        hints = [f"It may be state[{n!r}]." for n in inside if needed <= set(state[n])]
        if "param_groups" in state:
            hints.append("An optimizer's state is loaded into it before it is wrapped.")
        elif not hints and kind == "EMA":
            hints.append("Of other libraries: EMA.from_averages(model, state).")
        raise RequestError(
            f"This is no state dict of {kind}: it has no '{lacking[0]}'.",
            hint=" ".join([f"Load what {kind}.state_dict() returned.", *hints]),
        )
    if state.get("version") != 1:
        raise RequestError(
            f"This state dict of {kind} has version {state.get('version')}, not 1.",
            hint="Load it with the swavg that wrote it.",
        )


def warn_of_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn, in the name of load_state_dict()'s caller, of settings that a state was not made with:
    they are data, and what goes on has its own."""
    for name, value in now.items():
        if before.get(name) != value:
            warnings.warn(
                f"The state was made with {name} {before.get(name)}; it goes on with {value}.",
                stacklevel=3,
            )
