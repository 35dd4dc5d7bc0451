"""Small tensors that are computed while a plan is made, as a layout depends on their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from swavg.engine.compute import Tools
from swavg.engine.executors import threads
from swavg.engine.report import Tally, entry_names
from swavg.engine.resources import Resources, sizes
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import FileLayout, Layout
from swavg.planning.assemble import Assembly
from swavg.planning.decide import Decisions
from swavg.planning.plan import Plan
from swavg.planning.policy import Policy
from swavg.planning.row import Row
from swavg.planning.targets import Target


@dataclass(frozen=True, slots=True)
class _MemorySink:
    data: bytearray

    forks = False
    fds = ()

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self.data[offset : offset + len(data)] = data

    def sync(self) -> None: ...

    def fail(self, error: BaseException) -> None: ...


@dataclass(frozen=True, slots=True)
class Beforehand:
    """Computes tensors of a row as its tasks would, and keeps what was noticed: by row, the names
    of integers that differ, and of values that are not finite."""

    checkpoints: Sequence[Checkpoint]
    shown: Sequence[str]
    policy: Policy
    differing: dict[int, tuple[str, ...]] = field(default_factory=dict)
    nonfinite: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def compute(
        self, number: int, row: Row, decisions: Decisions, target: Target, layout: FileLayout
    ) -> bytes:
        """The bytes of a small file of row ``number``'s tensors. Raises InputError, NumericsError,
        MismatchError."""
        assembly = Assembly(self.checkpoints)
        output = assembly.output(0, row, decisions, target, Layout((layout,)), alone=True)
        plan = Plan(
            tuple(self.checkpoints), tuple(self.shown), (row,), self.policy, assembly.entries(),
            (output,), ({},), (),
        )  # fmt: skip
        chosen = sizes(plan, Resources(threads=1), forked=False)
        sink = _MemorySink(bytearray(layout.size))
        tally = Tally(plan, 0, layout.size)
        for result in threads(1)(plan, plan.tasks(), [[sink]], partial(Tools, plan, chosen)):
            tally.add(result)
        tally.complete()
        for noticed, found in (
            (self.differing, tally.differing),
            (self.nonfinite, tally.nonfinite),
        ):
            noticed[number] = (*noticed.get(number, ()), *entry_names(plan, 0, found))
        return bytes(sink.data)
