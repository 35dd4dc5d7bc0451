"""An optimizer around another one."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

from swavg.errors import RequestError


class Around(Optimizer):
    """An optimizer to those who ask, such as learning-rate schedulers and GradScaler; all that it
    does not do itself is the inner one's: parameter groups, state, defaults, hooks.

    ``optimizer`` is the inner one, None if there is none.
    """

    # GradScaler would leave its verdict on us, where a fused inner optimizer does not look for it.
    _step_supports_amp_scaling = False

    def __init__(self, optimizer: Optimizer | None) -> None:
        # Optimizer.__init__ is left out on purpose: what it would make is the inner one's.
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        inner = self.__dict__.get("optimizer")
        if inner is None or name.startswith("__"):
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        try:
            return getattr(inner, name)
        except AttributeError:
            raise AttributeError(
                f"Neither {type(self).__name__} nor its {type(inner).__name__} has an attribute"
                f" '{name}'"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        raise RequestError(
            f"An {type(self).__name__} cannot be pickled.", hint="Save its state_dict()."
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The inner optimizer's."""
        self.inner("zero_grad()").zero_grad(set_to_none)

    def inner(self, what: str) -> Optimizer:
        """The inner optimizer; RequestError, saying ``what`` was asked, if there is none."""
        if self.optimizer is None:
            raise RequestError(
                f"{what} is the optimizer's, and this {type(self).__name__} was given none."
            )
        return self.optimizer


class Parameters(nn.Module):
    """An optimizer's parameters as if they were a model's, as :meth:`follow` last found them."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__()
        self._optimizer = optimizer
        self.follow()

    def follow(self) -> None:
        """Look at the optimizer anew: groups may have been added, parameters replaced."""
        self._parameters.clear()
        for i, group in enumerate(self._optimizer.param_groups):
            for j, parameter in enumerate(group["params"]):
                # Straight into the table: they need not be of class Parameter.
                self._parameters[f"group {i}, parameter {j}"] = parameter
