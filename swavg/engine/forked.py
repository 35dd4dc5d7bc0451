"""Processes that were forked from this one run the tasks.

Nothing is sent to them: each has the plan, and runs every n-th task. Python runs one thread at a
time between NumPy calls, which costs threads much of a second processor; processes do not share
that lock.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from swavg.engine.executors import Executor, MakeTools, part
from swavg.engine.results import Sinks, TaskResult
from swavg.errors import SwavgError, WorkerError
from swavg.planning.plan import Plan

_LENGTH = struct.Struct("<Q")
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def can_fork() -> bool:
    """Whether a fork is safe: Linux, this is the only thread, and no library that has its own.

    NumPy's threads count too: where they run already, they may be in use.
    """
    return (
        sys.platform == "linux"
        and getattr(sys, "_is_gil_enabled", lambda: True)()
        and threading.active_count() == 1
        and "torch" not in sys.modules
        and _system_threads() == 1
        # Else the kernel would reap the workers, and their ids would be free for others.
        and signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN
    )


def _system_threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 0


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a task raised; ``error`` is None if it cannot be sent."""

    number: int
    error: BaseException | None
    text: str

    def to_raise(self) -> BaseException:
        if self.error is None:
            return RuntimeError(self.text)
        if self.text:
            self.error.__cause__ = _Remote(self.text)
        return self.error


class _Remote(Exception):
    """The traceback of a worker, shown as the cause of an error that nobody foresaw."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def forked(count: int) -> Executor:
    """``count`` forked processes, each a part; use only where :func:`can_fork`. This process
    alone where the system refuses one."""

    def run(
        plan: Plan, numbers: Sequence[int], sinks: Sinks, make: MakeTools
    ) -> Iterator[TaskResult]:
        children = _Children()
        try:
            allowed = children.fork(count, plan, numbers, sinks, make)
            if not allowed:
                yield from part(0, 1)(plan, numbers, sinks, make)
            yield from children.results()
        finally:
            children.kill()

    return run


class _Children:
    """Forked processes by the pipe that their answers come through, whose end tells that one has
    ended. When this process ends, however that happens, so do they: with their next answer."""

    def __init__(self) -> None:
        self._pids: dict[int, int] = {}
        self._done: dict[int, int] = {}
        self._failures: list[_Failure] = []

    def fork(
        self, count: int, plan: Plan, numbers: Sequence[int], sinks: Sinks, make: MakeTools
    ) -> int:
        """Start up to ``count`` processes: how many there are."""
        count = min(count, len(numbers))
        for index in range(count):
            source, target = os.pipe()
            # No signal may find a worker that still believes to be this process.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
            try:
                pid = os.fork()
                if pid == 0:
                    _worker_main(target, before, part(index, count), plan, numbers, sinks, make)
                self._pids[source] = pid
            except OSError:
                os.close(source)
                self.kill()
                return 0
            finally:
                os.close(target)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return count

    def results(self) -> Iterator[TaskResult]:
        poll = select.poll()
        for source in self._pids:
            poll.register(source, select.POLLIN)
        while self._pids:
            for source, _ in poll.poll():
                answer = self._receive(source)
                if answer is None:
                    poll.unregister(source)
                    self._close(source)
                elif isinstance(answer, _Failure):
                    self._failures.append(answer)
                else:
                    self._done[source] = answer.number
                    if not self._failures:
                        yield answer
            if self._failures:
                first = min(self._failures, key=lambda failure: failure.number)
                # Whoever is still behind it may fail earlier.
                if all(self._done.get(s, -1) > first.number for s in self._pids):
                    raise first.to_raise()
        if self._failures:
            raise min(self._failures, key=lambda failure: failure.number).to_raise()

    def _receive(self, source: int) -> TaskResult | _Failure | None:
        """The next answer of a worker; None if it has ended well. WorkerError if not."""
        head = self._read(source, _LENGTH.size)
        if head is None:
            self._raise_worker_lost(source)
        (length,) = _LENGTH.unpack(head)
        if length == 0:
            return None
        data = self._read(source, length)
        if data is None:
            self._raise_worker_lost(source)
        answer: TaskResult | _Failure = pickle.loads(data)
        return answer

    def _read(self, source: int, size: int) -> bytearray | None:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            count = os.readv(source, [rest])
            if count == 0:
                return None
            rest = rest[count:]
        return data

    def _raise_worker_lost(self, source: int) -> NoReturn:
        code = _reap(self._pids.pop(source))
        os.close(source)
        how = "ended before it was done"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = f"was ended by {signal.Signals(-code).name}"
        raise WorkerError(
            f"A worker process {how}.",
            hint="If memory was short, use a smaller threads=.",
        )

    def _close(self, source: int) -> None:
        os.close(source)
        _reap(self._pids.pop(source))

    def kill(self) -> None:
        """End all that still run."""
        for pid in self._pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self._pids:
            self._close(next(iter(self._pids)))


def _worker_main(
    target: int,
    mask: set[int | signal.Signals],
    executor: Executor,
    plan: Plan,
    numbers: Sequence[int],
    sinks: Sinks,
    make: MakeTools,
) -> NoReturn:
    """The life of a forked process: run its part, answer, and leave."""
    try:
        # Whoever interrupts this process group interrupts the parent, which ends the workers.
        for each in _STOPPING:
            signal.signal(each, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # What the garbage collector does not look at stays shared.
        gc.freeze()
        _close_inherited(target, sinks)
        seen = numbers[0]
        try:
            for result in executor(plan, numbers, sinks, make):
                seen = result.number + 1
                _send(target, result)
        except BaseException as error:
            _send(target, _failure(seen, error))
        os.write(target, _LENGTH.pack(0))
    except BaseException:
        os._exit(1)
    finally:
        os._exit(0)


def _failure(number: int, error: BaseException) -> _Failure:
    import traceback

    text = "" if isinstance(error, SwavgError) else traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return _Failure(number, None, text)
    return _Failure(number, error, text)


def _send(target: int, answer: TaskResult | _Failure) -> None:
    data = pickle.dumps(answer, pickle.HIGHEST_PROTOCOL)
    rest = memoryview(_LENGTH.pack(len(data)) + data)
    while rest:
        rest = rest[os.write(target, rest) :]


def _close_inherited(target: int, sinks: Sinks) -> None:
    """Close all files but the pipe and the outputs, so that no other pipe stays open because of a
    worker."""
    kept = {target, *(fd for row in sinks for sink in row for fd in sink.fds)}
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in {0, 1, 2}.difference(kept):
        os.dup2(nowhere, standard)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)


def _reap(pid: int) -> int | None:
    """Wait for a child: its exit code, negative for a signal; None if another waited for it."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return None
