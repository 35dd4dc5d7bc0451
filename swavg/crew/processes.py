"""A crew of forked processes.

They know the plan already, and write their chunks into shared memory: only numbers and findings
travel.
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
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from swavg.computing import Computer, Found
from swavg.crew.base import Key, Slot, views
from swavg.errors import WorkerError
from swavg.formats.base import Layout
from swavg.pieces import Piece, Run


def can_fork() -> bool:
    """Whether a fork is safe: Linux, this is the only thread, and no library that has its own.

    NumPy's threads count too: where they run already, they may be in use.
    """
    return (
        sys.platform == "linux"
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


_JOB = struct.Struct("<8Q")
"""Round, number, slot; the run's first task, tasks and elements; first element, elements."""
_LENGTH = struct.Struct("<Q")
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException | None
    text: str


class _Remote(Exception):
    """The traceback of a worker, shown as the cause of an error that nobody foresaw."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class Processes:
    """A crew of forked processes, one thread each. Use only where :func:`can_fork`.

    Jobs go through one pipe, from which the workers that are free take them; findings come back
    through a pipe per worker, whose end tells that the worker has ended. When this process ends,
    however that happens, the jobs' pipe ends, and so do the workers. ``rounds`` are the layouts
    that are computed, as in a stream. OSError if the system allows no more processes.
    """

    def __init__(
        self,
        count: int,
        slots: Sequence[Slot],
        computer: Computer,
        rounds: Sequence[Sequence[Layout]],
    ) -> None:
        self.slots = slots
        self._computer = computer
        self._rounds = rounds
        self._workers: dict[int, int] = {}
        self._answers: dict[Key, Found | _Failure] = {}
        self._pending: set[Key] = set()
        self._poll = select.poll()
        jobs, self._jobs = os.pipe()
        try:
            for _ in range(count):
                self._fork(jobs)
        except BaseException:
            self._kill()
            raise
        finally:
            os.close(jobs)

    def _fork(self, jobs: int) -> None:
        source, target = os.pipe()
        # No signal may find a worker that still believes to be this process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
        try:
            try:
                pid = os.fork()
            except BaseException:
                os.close(source)
                raise
            if pid == 0:
                self._live(jobs, target, before)
            self._workers[source] = pid
            self._poll.register(source, select.POLLIN)
        finally:
            os.close(target)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def submit(self, key: Key, piece: Piece, slot: int) -> None:
        self._pending.add(key)
        try:
            run = piece.run
            span = (run.first, run.count, run.numel, piece.start, piece.count)
            os.write(self._jobs, _JOB.pack(*key, slot, *span))
        except BrokenPipeError:
            self._mourn()

    def result(self, key: Key) -> Found:
        while key not in self._answers:
            for source, _ in self._poll.poll():
                self._receive(source)
        self._pending.discard(key)
        answer = self._answers.pop(key)
        if isinstance(answer, Found):
            return answer
        if answer.error is None:
            raise RuntimeError(answer.text)
        raise answer.error from (_Remote(answer.text) if answer.text else None)

    def _receive(self, source: int) -> None:
        length = _LENGTH.unpack(self._read(source, _LENGTH.size))[0]
        key, answer = pickle.loads(self._read(source, length))
        self._answers[key] = answer

    def _read(self, source: int, size: int) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            count = os.readv(source, [rest])
            if count == 0:
                self._mourn(source)
            rest = rest[count:]
        return data

    def _mourn(self, source: int | None = None) -> NoReturn:
        """Raise WorkerError for a worker that has ended (None: all of them)."""
        if source is None:
            source = next(iter(self._workers))
        code = _reap(self._workers.pop(source))
        os.close(source)
        self._kill()
        if code is None or code >= 0:
            how = "ended before it was done"
        else:
            with contextlib.suppress(ValueError):
                code = signal.Signals(-code).name  # type: ignore[assignment]
            how = f"was ended by {code}"
        raise WorkerError(
            f"A worker process {how}.",
            hint="If memory was short, use a smaller --threads.",
        )

    def abandon(self) -> None:
        if self._pending:
            self._kill()

    def close(self) -> None:
        # Workers that have nothing left to do end by themselves.
        if self._pending:
            self._kill()
        else:
            self._dismiss()
        self.slots = ()
        self._computer.close()

    def _kill(self) -> None:
        for pid in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._dismiss()

    def _dismiss(self) -> None:
        if self._jobs >= 0:
            os.close(self._jobs)
            self._jobs = -1
        while self._workers:
            source, pid = self._workers.popitem()
            os.close(source)
            _reap(pid)

    # ---- In the worker.

    def _live(self, jobs: int, target: int, mask: set[int | signal.Signals]) -> NoReturn:
        try:
            # Whoever interrupts this process group interrupts the writer, which ends the jobs.
            for each in _STOPPING:
                signal.signal(each, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            # What the garbage collector does not look at stays shared.
            gc.freeze()
            _keep_only(jobs, target)
            self._work(jobs, target)
        except (BrokenPipeError, EOFError):
            pass
        except BaseException:
            os._exit(1)
        finally:
            os._exit(0)

    def _work(self, jobs: int, target: int) -> None:
        while len(job := os.read(jobs, _JOB.size)) == _JOB.size:
            turn, number, slot, first, tasks, numel, start, count = _JOB.unpack(job)
            try:
                # Built here from the plan, of which only this one task is touched: pages that
                # nobody writes to, not even a count of references, stay shared.
                layouts, run = self._rounds[turn], Run(first, tasks, numel)
                piece = Piece(run.rows(layouts), start, count, run, layouts[0].tasks)
                answer: Any = self._computer.compute(piece, views(self.slots[slot], piece))
            except BaseException as error:
                answer = _failure(error)
            data = pickle.dumps(((turn, number), answer), pickle.HIGHEST_PROTOCOL)
            _write(target, _LENGTH.pack(len(data)) + data)


def _failure(error: BaseException) -> _Failure:
    from swavg.errors import SwavgError

    text = "" if isinstance(error, SwavgError) else traceback.format_exc()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return _Failure(None, text)
    return _Failure(error, text)


def _write(target: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(target, rest) :]


def _keep_only(*kept: int) -> None:
    """Close all files but ``kept``, so that no pipe or output stays open because of a worker."""
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
