"""Power-function EMAs while a model trains, for EMAs of any width afterwards.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models" (arXiv
2312.02696), section 3.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

from torch import Tensor, nn

from swavg.engine.recipe import recipe_of
from swavg.errors import InputError, RequestError
from swavg.short_repr import ShortRepr
from swavg.storage.destination import check_local
from swavg.training.averages import Averages
from swavg.training.ema import check_state
from swavg.training.moving import lerp
from swavg.training.rules import Options
from swavg.training.snapshot import save_snapshot
from swavg.training.wrapped import rank
from swavg.weights import beta, gamma_from_sigma_rel


class PowerEMA(ShortRepr):
    """Power-function EMAs of ``model``'s weights, one for each relative width of ``sigma_rel``.

        >>> power = PowerEMA(model)
        >>> for step, batch in enumerate(batches, 1):
        ...     train(batch)
        ...     power.update()
        ...     if step % 1000 == 0:
        ...         power.save("snapshots")

    and afterwards ``swavg posthoc snapshots --sigma-rel 0.12``. Update t (from 1) is
    ``a <- beta a + (1 - beta) w`` with ``beta = (1 - 1/t)^(gamma+1)``: the first is a copy, the
    model before training counts nothing. Averages are float32 or wider. ``options`` are as
    in :class:`~swavg.training.EMA`.
    """

    def __init__(
        self,
        model: nn.Module,
        sigma_rel: float | Sequence[float] = (0.05, 0.10),
        **options: Unpack[Options],
    ) -> None:
        widths = sigma_rel if isinstance(sigma_rel, Sequence) else (sigma_rel,)
        self.sigma_rel = tuple(float(width) for width in widths)
        if not self.sigma_rel:
            raise RequestError("sigma_rel is empty.", hint="The paper keeps two: (0.05, 0.10).")
        if len(set(self.sigma_rel)) != len(self.sigma_rel):
            raise RequestError(f"sigma_rel has a width twice: {self.sigma_rel}.")
        self.gammas = tuple(gamma_from_sigma_rel(width) for width in self.sigma_rel)
        """The exponents of the profiles."""
        self.num_updates = 0
        """How many updates were made: the t of the last."""
        self._averages = [Averages(model, **options) for _ in self.gammas]

    def update(self) -> None:
        """Average the model's present weights in. Errors as in :meth:`EMA.update`."""
        for average in self._averages:
            average.forbid_applied("update")
        t = self.num_updates + 1
        for average, gamma in zip(self._averages, self.gammas, strict=True):
            average.move(partial(lerp, weight=1 - beta(t, gamma)))
        self.num_updates = t

    @contextmanager
    def applied(self, index: int = 0) -> Iterator[None]:
        """The model has the weights of profile ``index`` in the block, as in
        :meth:`EMA.applied`."""
        for average in self._averages:
            average.forbid_applied("apply another profile")
        with self._averages[index].applied():
            yield

    def refresh(self) -> None:
        """Go on with a model whose parameters have changed, as :meth:`EMA.refresh`."""
        for average in self._averages:
            average.forbid_applied("look at the model anew")
        for average in self._averages:
            average.refresh()

    def averaged(self, index: int = 0, dtype: Literal["model"] | None = None) -> dict[str, Tensor]:
        """The model's whole state dict with the values of profile ``index``, as
        :meth:`EMA.averaged` gives it."""
        return self._averages[index].averaged(dtype)

    def save(
        self, folder: str | os.PathLike[str], step: int | None = None, *, force: bool = False
    ) -> list[Path]:
        """Write a snapshot of each profile into ``folder`` for ``swavg posthoc``; their paths.

        ``step`` is recorded instead of the number of updates. It must be proportional to that, as
        the number of samples seen is: the profiles reach back to step 0. What an earlier run saved
        after as many updates is replaced, other files only with ``force``. Raises RequestError
        before the first update, and what :func:`~swavg.training.save_snapshot` raises.
        """
        if self.num_updates == 0:
            raise RequestError("No update was made yet: there is no average to save.")
        at = self.num_updates if step is None else step
        check_local(folder)
        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = []
        for index, (width, gamma) in enumerate(zip(self.sigma_rel, self.gammas, strict=True)):
            profile = {"sigma_rel": width, "gamma": gamma}
            n = self.num_updates
            recipe = {"method": "power ema", "n": n, "step": at, "profile": profile}
            path = Path(folder) / f"sigma-{width}-step-{at}.safetensors"
            # What an interrupted run wrote of this step makes way; what is not ours does not.
            again = force or (rank() == 0 and _is_of(path, recipe))
            views = self._averages[index].views()
            paths.append(save_snapshot(path, views, step=at, recipe=recipe, force=again))
        return paths

    def state_dict(self) -> dict[str, Any]:
        """All that it takes to go on bit for bit, as :meth:`EMA.state_dict`."""
        states = [average.averages_state() for average in self._averages]
        return {
            "version": 1,
            "sigma_rel": list(self.sigma_rel),
            "num_updates": self.num_updates,
            "averages": [state["averages"] for state in states],
            "own": [state["own"] for state in states],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`. Raises RequestError if it has other profiles, and
        MismatchError for other names and shapes."""
        check_state(state, "PowerEMA", {"sigma_rel", "num_updates"})
        if tuple(state["sigma_rel"]) != self.sigma_rel:
            raise RequestError(
                f"The state has the widths {tuple(state['sigma_rel'])}, not {self.sigma_rel}."
            )
        states = [
            {"averages": averages, "own": own}
            for averages, own in zip(state["averages"], state["own"], strict=True)
        ]
        for average, each in zip(self._averages, states, strict=True):
            average.check_averages(each)
        for average, each in zip(self._averages, states, strict=True):
            average.load_averages(each)
        self.num_updates = int(state["num_updates"])

    def facts(self) -> Mapping[str, object]:
        return {"sigma_rel": self.sigma_rel, "num_updates": self.num_updates}

    def __repr__(self) -> str:
        return f"PowerEMA(sigma_rel={self.sigma_rel}, num_updates={self.num_updates})"


def _is_of(path: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether a snapshot of the same profile, updates and step is at ``path``."""
    try:
        found = recipe_of(path)
    except InputError:
        return False
    return all(found.get(name) == value for name, value in recipe.items())
