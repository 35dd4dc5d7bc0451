"""What surrounds a command: signals, and standard streams that may be closed or full."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

import click

from swavg.errors import OutputError

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_closed: set[str] = set()


def stop_on_signals() -> None:
    """Interrupt once, then ignore further signals while the temporary files are removed."""

    def stop(number: int, frame: FrameType | None) -> None:
        ignore_signals()
        raise KeyboardInterrupt

    for each in _STOPPING:
        # A parent may have asked us to ignore it (nohup).
        previous: Any = signal.getsignal(each)
        if previous is not signal.SIG_IGN:
            signal.signal(each, stop)


def ignore_signals() -> None:
    """From here on it is too late to stop: an output is getting its name, or cleaning up began."""
    for each in _STOPPING:
        signal.signal(each, signal.SIG_IGN)


class _Stream:
    """A standard stream whose errors are told (standard output) or do not matter (messages)."""

    def __init__(self, stream: Any, told: bool) -> None:
        self._stream = stream
        self._told = told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
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
            raise error
        raise OutputError("standard output", f"cannot be written: {error.strerror}") from None


def settle_streams() -> None:
    """Make standard streams that the parent has closed, and have errors of the others told."""
    for name, flags in (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            # Else the next file that is opened would take its number.
            _closed.add(name)
            mode = "r" if flags == os.O_RDONLY else "w"
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode))
    for name, told in (("stdout", True), ("stderr", False)):
        if not isinstance(getattr(sys, name), _Stream):
            setattr(sys, name, _Stream(getattr(sys, name), told))


def require_stdout() -> None:
    """Raise UsageError if standard output was closed by the parent."""
    if "stdout" in _closed:
        raise click.UsageError("Standard output is closed.")


def forget_stdout() -> None:
    """What is left in the buffer of standard output has nowhere to go."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115
