"""Where several outputs go: names in a folder, with the suffix of the inputs."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import click

from swavg.errors import OutputError


def check_can_be_made(folder: str) -> None:
    """Raise OutputError where :func:`made` would."""
    place = os.path.abspath(folder)
    try:
        while True:
            try:
                os.stat(place)
                break
            except FileNotFoundError:
                place = os.path.dirname(place)
        code = 0 if os.access(place, os.W_OK | os.X_OK) else errno.EACCES
        if not os.path.isdir(place):
            code = errno.ENOTDIR if place != os.path.abspath(folder) else errno.EEXIST
    except OSError as error:
        code = error.errno or errno.EIO
    if code and not os.path.isdir(folder):
        raise OutputError(folder, f"cannot be made: {os.strerror(code)}")


@contextmanager
def made(folder: str) -> Iterator[None]:
    """The folder exists in the block; if that fails, it is not left behind empty."""
    new = not os.path.isdir(folder)
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise OutputError(folder, f"cannot be made: {error.strerror}") from None
    try:
        yield
    except BaseException:
        if new:
            with suppress(OSError):
                os.rmdir(folder)
        raise


def outputs_in(folder: str, names: Sequence[str], first: str) -> list[str]:
    """A path in ``folder`` per name, with the suffix of the checkpoint ``first``.

    Raises UsageError for names that are not distinct.
    """
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise click.UsageError(f"Two outputs would be called '{twice}'.")
    suffix = ""
    if not os.path.isdir(first):
        base = os.path.basename(first)
        suffix = ".pth.tar" if base.endswith(".pth.tar") else os.path.splitext(base)[1]
    return [os.path.join(folder, f"{name}{suffix}") for name in names]
