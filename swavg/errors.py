"""Errors that a user can act on.

One base class; each kind carries the exit code that the command line returns for it and, where
there is one, a way out (``hint``). The library raises these and never prints or exits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass


class SwavgError(Exception):
    """Anything that swavg refuses to do. ``exit_code`` is the command line's."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # The arguments of a kind are not those that it hands to its base class.
        return _restored, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        if self.hint is None:
            return self.message
        end = "" if self.message.endswith(("?", "!")) else "."
        return f"{self.message.removesuffix('.')}{end} {self.hint}"


def _restored(
    kind: type[SwavgError], args: tuple[object, ...], facts: dict[str, object]
) -> SwavgError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(facts)
    return error


class WorkerError(SwavgError):
    """A worker process ended before it was done: killed, or out of memory."""


class RequestError(SwavgError):
    """The call itself is wrong: a wrong count of weights, an unknown option value."""

    exit_code = 2


class MissingDependencyError(RequestError):
    """An optional package is needed for what was asked."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which inputs differ: ``what`` about tensor ``name``, one fact per input."""

    name: str
    what: str
    facts: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        groups: dict[str, list[str]] = {}
        for source, fact in self.facts:
            groups.setdefault(fact, []).append(source)
        return f"{self.name}: {self.what}: " + "; ".join(
            f"{fact} in {', '.join(sources)}" for fact, sources in groups.items()
        )


class MismatchError(SwavgError):
    """The checkpoints do not match; ``differences`` lists everything that differs."""

    exit_code = 3

    def __init__(
        self, message: str, *, differences: Sequence[Difference] = (), hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.differences = tuple(differences)


class InputError(SwavgError):
    """An input is missing, corrupt, unsafe, or changed while it was read."""

    exit_code = 4

    def __init__(
        self, path: str | os.PathLike[str], problem: str, *, hint: str | None = None
    ) -> None:
        super().__init__(f"{os.fspath(path)}: {problem}", hint=hint)
        self.path = os.fspath(path)
        self.problem = problem


class OutputError(SwavgError):
    """The output cannot be written, or exists already."""

    exit_code = 5

    def __init__(
        self, path: str | os.PathLike[str], problem: str, *, hint: str | None = None
    ) -> None:
        super().__init__(f"{os.fspath(path)}: {problem}", hint=hint)
        self.path = os.fspath(path)
        self.problem = problem


class OutputExistsError(OutputError):
    """The output exists already, and may not be replaced."""

    exit_code = 7


class NumericsError(SwavgError):
    """The result would hold NaN, Inf, or a value that its dtype cannot represent."""

    exit_code = 6
