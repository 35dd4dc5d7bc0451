"""What an output must not touch: inputs, and files that are not its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache

from swavg.errors import OutputError, OutputExistsError, some
from swavg.storage.sinks import STDOUT
from swavg.storage.sources import Source

Input = tuple[str, Sequence[Source]]
"""The path of an input, as it was given, and where its bytes come from."""


def check_not_input(path: str, inputs: Sequence[Input]) -> None:
    """Raise OutputError if publishing at ``path`` would touch an input, the links that lead to
    one, or a folder that is one or holds one. Writing beside an input file is allowed.

    Places are compared by device and inode too: a folder may be mounted at several.
    """
    try:
        output, above = _keys(path), _keys_above(os.path.realpath(path))
        for given, sources in inputs:
            # A new file in it may be what is read next time.
            if any(_keys(folder) & above for folder in _folders(given, sources)):
                raise OutputError(
                    path,
                    f"lies in the input {given}",
                    hint="swavg never changes an input; choose another -o.",
                )
            if output & _keys_of_input(given, sources):
                raise OutputError(
                    path,
                    f"holds the input {given}" if os.path.isdir(path) else "is an input",
                    hint="swavg never writes over an input; choose another -o.",
                )
    except OSError as error:
        # The current folder is gone.
        raise OutputError(path, f"cannot be written: {error.strerror}") from None


def check_none_is_input(paths: Iterable[str], sources: Iterable[Source]) -> None:
    """Raise OutputError if a file that is written to is an input, by another name or link."""
    inputs = {source.identity for source in sources}
    for path in paths:
        with suppress(OSError):
            facts = os.stat(path)
            if (facts.st_dev, facts.st_ino) in inputs:
                raise OutputError(path, "is an input", hint="Remove it: swavg never writes there.")


def _keys(path: str) -> set[object]:
    """What tells whether two paths are one place: where it really is, and device and inode."""
    keys: set[object] = {os.path.realpath(path)}
    with suppress(OSError, ValueError):
        facts = os.stat(path)
        keys.add((facts.st_dev, facts.st_ino))
    return keys


def _keys_above(place: str) -> set[object]:
    """Those of all folders above an absolute path."""
    keys: set[object] = set()
    while (folder := os.path.dirname(place)) != place:
        keys |= _keys(folder)
        place = folder
    return keys


def _folders(given: str, sources: Sequence[Source]) -> set[str]:
    """The folders that an input consists of: none if it is a file."""
    if not os.path.isdir(given):
        return set()
    return {given, *(os.path.dirname(source.name) for source in sources)} - {""}


def _keys_of_input(given: str, sources: Sequence[Source]) -> set[object]:
    """Those of its files, of the links that lead to them, and of all folders above both."""
    keys = _keys(given) | {source.identity for source in sources}
    real = cache(os.path.realpath)  # many files lie in few folders
    folders = set()
    for name in (given, *(source.name for source in sources)):
        for place in _places(name, real):
            keys.add(place)
            folders.add(os.path.dirname(place))
    for folder in folders:
        keys |= _keys(folder) | _keys_above(folder)
    return keys


def _places(path: str, real: Callable[[str], str]) -> Iterator[str]:
    """Where a file lies by name and, link by link, by content: in the hub cache, shards are
    links."""
    for _ in range(40):
        folder, name = os.path.split(os.path.abspath(path))
        place = os.path.join(real(folder), name)
        yield place
        if not os.path.islink(place):
            return
        path = os.path.join(os.path.dirname(place), os.readlink(place))


def check_stdout_not_input(inputs: Sequence[Input]) -> None:
    """Raise OutputError if standard output was redirected into an input (``-o - >> a``)."""
    try:
        facts = os.fstat(sys.stdout.fileno())
    except OSError:
        return
    for _, sources in inputs:
        for source in sources:
            if source.identity == (facts.st_dev, facts.st_ino):
                raise OutputError(STDOUT, f"is the input {source.name}")


def check_only_ours(
    folder: str, names: Collection[str], stem_of: Callable[[str], str | None], *, force: bool
) -> None:
    """Raise OutputError (OutputExistsError without ``force``) if replacing ``folder`` would lose
    anything but an older checkpoint.

    ``names`` are the files that are written, in folders below it too. ``stem_of`` gives the name
    of the checkpoint whose weights a file holds, None for another file: older weights of the same
    name may go.
    """
    stems = {stem_of(name) for name in names} - {None}
    below: dict[str, set[str]] = {}
    for name in names:
        first, _, rest = name.partition(os.sep)
        below.setdefault(first, set()).update([rest] if rest else [])
    try:
        with os.scandir(folder) as entries:
            found = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        foreign = sorted(
            name
            for name, is_folder in found.items()
            if name not in below
            # Weights of another name (step-100.safetensors) are not ours to remove.
            and (is_folder or stem_of(name) not in stems)
        )
        for name, is_folder in found.items():
            if is_folder and name in below:
                check_only_ours(os.path.join(folder, name), below[name], stem_of, force=force)
    except OSError as error:
        raise OutputError(folder, f"cannot be looked into: {error.strerror}") from None
    if foreign:
        exists = "would be replaced, but" if force else "exists already, and"
        raise (OutputError if force else OutputExistsError)(
            folder,
            f"{exists} holds what the new checkpoint does not: {some(foreign, 4)}",
            hint="Choose another -o, or remove the folder yourself.",
        )
