"""The user's own model and data, by name."""

from __future__ import annotations

import importlib
import inspect
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

from swavg.errors import MissingDependencyError, RequestError
from swavg.evaluation.user_objects import call, failed, importable, kind
from swavg.evaluation.user_objects import load_callable as load_callable
from swavg.evaluation.user_objects import load_object as load_object

if TYPE_CHECKING:
    from torch import nn


def build_model(text: str, option: str = "--model") -> nn.Module:
    """The module that ``text`` names, or that the callable of that name returns without arguments.

    Raises RequestError, and MissingDependencyError where torch is not installed.
    """
    module = require_torch().nn.Module
    value = load_object(text, option)
    if not isinstance(value, module):
        value = call(value, text, option, "a torch.nn.Module")
    if not isinstance(value, module):
        raise RequestError(
            f"{option}: {text} returned {kind(value)}, not a torch.nn.Module.",
            hint="Write a function without arguments that returns the model.",
        )
    model: nn.Module = value
    return model


def build_batches(text: str, option: str = "--data") -> Batches:
    """The batches that ``text`` names, or that the callable of that name returns without arguments.

    A DataLoader or a list can be gone through many times; so can a generator function, which is
    called again for each pass. Raises RequestError, and MissingDependencyError without torch.
    """
    torch = require_torch()
    value = load_object(text, option)
    data = torch.utils.data
    again: Any = None
    if not isinstance(value, (Iterable, data.Dataset)) or inspect.isclass(value):
        again, value = value, call(value, text, option, "batches")
    if isinstance(value, data.Dataset) and not isinstance(value, data.IterableDataset):
        raise RequestError(
            f"{option}: {text} gives {kind(value)}, whose items are single examples.",
            hint="Put it into a torch.utils.data.DataLoader with a batch size.",
        )
    one_batch = isinstance(value, (str, bytes, Mapping, torch.Tensor)) or (
        isinstance(value, tuple) and any(isinstance(item, torch.Tensor) for item in value)
    )
    if one_batch or not isinstance(value, Iterable):
        raise RequestError(
            f"{option}: {text} gives {kind(value)}, not batches to go through.",
            hint="Write a function without arguments that returns a DataLoader or a list of"
            " batches.",
        )
    return Batches(value, text, option, again)


class Batches:
    """Batches as the user's code makes them; errors in it become RequestErrors.

    Each ``iter()`` is one pass. ``total`` is the number of batches, None if it is not known.
    """

    def __init__(
        self,
        source: Iterable[Any],
        text: str,
        option: str = "--data",
        again: Callable[[], Iterable[Any]] | None = None,
    ) -> None:
        self._source = source
        self._text = text
        self._option = option
        self._again = again
        self._used = False

    @property
    def total(self) -> int | None:
        try:
            return len(self._source)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            # An iterable dataset has a length only if its author gave it one.
            return None

    def __iter__(self) -> Iterator[Any]:
        source = self._source
        with self._watched("cannot be iterated"):
            if self._used and iter(source) is source:
                if self._again is None:
                    raise RequestError(
                        f"{self._option}: {self._text} gives its batches only once,"
                        " and a second pass is needed.",
                        hint="Name a function that makes them anew, a DataLoader or a list.",
                    )
                source = self._again()
            self._used = True
            batches = iter(source)
        number = 0
        while True:
            number += 1
            with self._watched(f"failed at batch {number}"):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            if number == 1 and (odd := _module_in(batch)) is not None:
                raise RequestError(
                    f"{self._option}: {self._text} gives {kind(odd)}, not batches to go through.",
                    hint="A batch is a tensor, (inputs..., target) or a mapping of them.",
                )
            yield batch

    @contextmanager
    def _watched(self, what: str) -> Iterator[None]:
        try:
            with importable(self._text):
                yield
        except RequestError:
            raise
        except Exception as error:
            raise failed(f"{self._option}: {self._text} {what}", error) from error


def _module_in(batch: object) -> object:
    """A part of a model among the items of a batch; None if there is none."""
    items = batch if isinstance(batch, (tuple, list)) else (batch,)
    module = require_torch().nn.Module
    return next((item for item in items if isinstance(item, module)), None)


@contextmanager
def prints_on_stderr() -> Iterator[None]:
    """In the block, what the user's code prints goes to stderr: stdout carries data only."""
    with redirect_stdout(_Diverted(sys.stdout)):
        yield


class _Diverted(io.TextIOBase):
    """Text goes to stderr; the descriptor is still that of stdout, for the data."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()

    def fileno(self) -> int:
        return self._stdout.fileno()


def require_torch() -> Any:
    """torch; MissingDependencyError where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError(
            "Running a model needs PyTorch.", hint="pip install torch"
        ) from None
