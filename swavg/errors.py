"""Errors that a user can act on.

One base class; each kind carries the exit code that the command line returns for it and, where
there is one, a way out (``hint``). The library raises these and never prints or exits. It names
its own arguments as a call does ("Use force=True to replace it.", "best= needs metric="); the
command line shows its options instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class SwavgError(Exception):
    """Anything that swavg refuses to do."""

    exit_code = 1
    """The command line's."""
    kind = "error"
    """One word for programs."""

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

    kind = "worker"


class RequestError(SwavgError):
    """The call itself is wrong: a wrong count of weights, an unknown option value.

    With ``argument``, the name of the argument that is wrong, the message says what it must be:
    ``RequestError("must be at least 1, not 0", argument="threads")``.
    """

    exit_code = 2
    kind = "usage"

    def __init__(
        self, message: str, *, argument: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(f"{argument} {message}" if argument else message, hint=hint)
        self.argument = argument
        self.problem = message


class MissingDependencyError(RequestError):
    """An optional package is needed for what was asked."""

    kind = "missing-dependency"


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
    kind = "mismatch"

    def __init__(
        self, message: str, *, differences: Sequence[Difference] = (), hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.differences = tuple(differences)


class PathError(SwavgError):
    """A ``problem`` with the file or folder at ``path``."""

    def __init__(
        self, path: str | os.PathLike[str], problem: str, *, hint: str | None = None
    ) -> None:
        super().__init__(f"{os.fspath(path)}: {problem}", hint=hint)
        self.path = os.fspath(path)
        self.problem = problem


class InputError(PathError):
    """An input is missing, corrupt, unsafe, or changed while it was read. ``absent``: there is
    nothing at the path."""

    exit_code = 4
    kind = "input"

    def __init__(
        self,
        path: str | os.PathLike[str],
        problem: str,
        *,
        hint: str | None = None,
        absent: bool = False,
    ) -> None:
        super().__init__(path, problem, hint=hint)
        self.absent = absent


class ChangedError(InputError):
    """An input is no longer what it was when it was opened."""

    def __init__(self, path: str) -> None:
        super().__init__(
            path,
            "changed while it was read",
            hint="Is a training run still writing it? Wait for it to finish, or copy it first.",
        )


class DeniedError(InputError):
    """An input that these credentials may not look at: it may be there, or not."""


class NoWeightsError(InputError):
    """A file that holds no weights, rather than a broken one: beside others it may well lie."""


class OptimizerError(NoWeightsError):
    """A file that holds the state of an optimizer instead."""


class LoneTensorError(NoWeightsError):
    """A file that holds one tensor, which has no name."""


class OutputError(PathError):
    """The output cannot be written."""

    exit_code = 5
    kind = "output"


class OutputExistsError(OutputError):
    """The output exists, and was not to be replaced."""

    exit_code = 7
    kind = "exists"


class ReaderGoneError(OutputError):
    """Nobody reads standard output any more."""

    exit_code = 141
    kind = "reader-gone"


class NumericsError(SwavgError):
    """The result would hold NaN, Inf, or a value that its dtype cannot represent."""

    exit_code = 6
    kind = "numerics"


def first_line(error: BaseException) -> str:
    """What an error says first, or its name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The word of ``known`` that was meant, perhaps; None if none is near."""
    import difflib

    return next(iter(difflib.get_close_matches(word, [*known], 1, cutoff=0.75)), None)


def some(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def quoted(names: Iterable[str], most: int) -> str:
    """:func:`some` of them, in quotes."""
    return some([f"'{name}'" for name in names], most)


def with_article(word: str) -> str:
    """``a step``, ``an epoch``."""
    return f"{'an' if word[:1].lower() in 'aeiou' else 'a'} {word}"


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A question with the nearest of the ``known`` words; None if none is near."""
    near = nearest(word, known)
    return None if near is None else f"Did you mean '{near}'?"
