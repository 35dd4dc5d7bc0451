"""Signals that end a run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_received: list[int] = []
"""The signal that asked the run to end: Ray raises an interrupt of its own instead of ours."""


class Stopped(KeyboardInterrupt):
    """A signal asked the run to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def exit_code(stopped: BaseException | None) -> int:
    """143 for SIGTERM, as shells say it; 130 for every other way to interrupt."""
    numbers = [stopped.number] if isinstance(stopped, Stopped) else _received
    terminated = numbers == [signal.SIGTERM]
    return 128 + signal.SIGTERM if terminated else 128 + signal.SIGINT


def stop_on_signals() -> None:
    """Interrupt once, then ignore further signals while the temporary files are removed."""

    _received.clear()

    def stop(number: int, frame: FrameType | None) -> None:
        ignore_signals()
        _received.append(number)
        raise Stopped(number)

    for each in _STOPPING:
        # A parent may have asked us to ignore it (nohup).
        if signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, stop)


@contextmanager
def signals_kept() -> Iterator[None]:
    """After the block signals do again what they did before it."""
    before = {each: signal.getsignal(each) for each in _STOPPING}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def ignore_signals() -> None:
    """From here on it is too late to stop: an output is getting its name, or cleaning up began."""
    for each in _STOPPING:
        signal.signal(each, signal.SIG_IGN)
