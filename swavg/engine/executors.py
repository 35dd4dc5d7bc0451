"""Who runs the tasks on this machine: this thread, or several (and :mod:`swavg.engine.forked`:
processes)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from swavg.engine.compute import Tools, run_task
from swavg.engine.results import Sinks, TaskResult
from swavg.planning.plan import Plan
from swavg.storage.calls import abandoned

MakeTools = Callable[[], Tools]
Executor = Callable[[Plan, Sequence[int], Sinks, MakeTools], Iterator[TaskResult]]
"""Runs tasks of a plan; yields their results as they come. Of errors the first by number is
raised."""


def part(index: int, count: int) -> Executor:
    """Every ``count``-th task from the ``index``-th on, in this process."""

    def run(
        plan: Plan, numbers: Sequence[int], sinks: Sinks, make: MakeTools
    ) -> Iterator[TaskResult]:
        with make() as tools:
            for number in numbers[index::count]:
                yield run_task(plan, number, tools, sinks)

    return run


def threads(count: int) -> Executor:
    """Tasks begin in order, and their results come in order. Fewer threads, and at least this one,
    where the system allows no more."""

    def run(
        plan: Plan, numbers: Sequence[int], sinks: Sinks, make: MakeTools
    ) -> Iterator[TaskResult]:
        return _Threads(count, plan, numbers, sinks, make).results()

    return run


class _Threads:
    def __init__(
        self, count: int, plan: Plan, numbers: Sequence[int], sinks: Sinks, make: MakeTools
    ) -> None:
        self._plan, self._make = plan, make
        self._numbers = iter(numbers)
        self._order = list(numbers)
        self._ready = threading.Condition()
        self._results: dict[int, TaskResult | BaseException] = {}
        self._stopped = False
        self._sinks = sinks
        self._workers = [
            threading.Thread(target=self._work, daemon=True, name=f"swavg-{n}")
            for n in range(count)
        ]

    def results(self) -> Iterator[TaskResult]:
        for number, worker in enumerate(self._workers):
            try:
                worker.start()
            except RuntimeError:
                # The system allows no more: those that run do it all.
                del self._workers[number:]
                break
        if not self._workers:
            yield from part(0, 1)(self._plan, self._order, self._sinks, self._make)
            return
        try:
            for number in self._order:
                with self._ready:
                    while number not in self._results:
                        self._ready.wait()
                    result = self._results.pop(number)
                if isinstance(result, BaseException):
                    raise result
                yield result
        except BaseException as error:
            self._stop(error)
            raise
        for worker in self._workers:
            worker.join()

    def _stop(self, error: BaseException) -> None:
        with self._ready:
            self._stopped = True
        for row in self._sinks:
            for sink in row:
                sink.fail(error)
        # Where it waits for a store, it may be long.
        with abandoned({worker.ident for worker in self._workers if worker.ident is not None}):
            for worker in self._workers:
                worker.join()

    def _work(self) -> None:
        number = None
        try:
            with self._make() as tools:
                while True:
                    with self._ready:
                        number = None if self._stopped else next(self._numbers, None)
                    if number is None:
                        return
                    self._put(number, run_task(self._plan, number, tools, self._sinks))
        except BaseException as error:
            # Without tools no task has begun: the first is to tell.
            self._put(self._order[0] if number is None else number, error)

    def _put(self, number: int, result: TaskResult | BaseException) -> None:
        with self._ready:
            self._results[number] = result
            self._stopped |= isinstance(result, BaseException)
            self._ready.notify_all()
