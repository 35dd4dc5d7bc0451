"""Standard streams that may be closed, full, or unable to show a character."""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import TextIO

import click

from swavg.errors import OutputError, ReaderGoneError
from swavg.storage.sinks import STDOUT

_closed: set[str] = set()


class _Stream:
    """A standard stream whose errors are told (standard output) or do not matter (messages)."""

    def __init__(self, stream: TextIO, told: bool) -> None:
        self._stream = stream
        self._told = told

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        if not self._told:
            return
        if isinstance(error, BrokenPipeError):
            raise ReaderGoneError(STDOUT, "cannot be written: its reader went away") from None
        raise OutputError(STDOUT, f"cannot be written: {error.strerror}") from None


def _shown(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for characters that a stream's encoding lacks; bytes of file names stay."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    if all("\udc80" <= char <= "\udcff" for char in text):
        return os.fsencode(text), error.end
    # Rules and bars still look like such.
    text = "".join("-" if c == "─" else "#" if "▁" <= c <= "▏" else c for c in text)
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("swavg.shown", _shown)


def reopen_closed() -> None:
    """Open standard streams that the parent has closed, have errors of the others told, and let
    both outputs replace what they cannot show."""
    for name, flags in (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            # Else the next file that is opened would take its number.
            _closed.add(name)
            mode = "r" if flags == os.O_RDONLY else "w"
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode))
    for name, told in (("stdout", True), ("stderr", False)):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="swavg.shown")
        if not isinstance(stream, _Stream):
            setattr(sys, name, _Stream(stream, told))


def require_stdout() -> None:
    """Raise UsageError if standard output was closed by the parent."""
    if "stdout" in _closed:
        raise click.UsageError("Standard output is closed.")


def discard_stdout() -> None:
    """What is left in the buffer of standard output has nowhere to go."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
