"""tensor -> chunk -> bytes: a crew computes chunks, which come out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swavg import crew
from swavg.computing import Computer, Found
from swavg.formats.base import Checkpoint, Layout
from swavg.pieces import Budget, Piece, cut
from swavg.policy import Policy

if TYPE_CHECKING:
    from swavg.geometry import Geometry


@dataclass(slots=True)
class Tally:
    """What a run has done so far, in bytes, and which integer tensors differed."""

    read: int = 0
    written: int = 0
    differing_integers: dict[str, None] = field(default_factory=dict)
    nonfinite: dict[str, None] = field(default_factory=dict)


class Stream:
    """Computes layouts chunk by chunk. A context manager: it owns workers and open files.

    ``rounds`` are the layouts that are computed one after the other, each a tuple of those that
    differ in weights only and are computed together. ``geometry`` is the number of inputs whose
    distances are wanted (None: not wanted).
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        shown: Sequence[str],
        policy: Policy,
        budget: Budget,
        rounds: Sequence[Sequence[Layout]],
        device: str = "cpu",
        geometry: int | None = None,
    ) -> None:
        self._budget = budget
        self._rounds = rounds
        forks = budget.processes and device == "cpu" and crew.can_fork()
        # Here NumPy is imported, which may start threads of its own.
        self.geometry = None if geometry is None else _geometry(geometry)
        computer = Computer(checkpoints, shown, policy, budget, device, self.geometry)
        slots = crew.room(budget.workers + budget.spare, budget.rows, budget.chunk_bytes)
        self._crew = self._assemble(forks, slots, computer)
        self._free = list(range(len(slots)))
        self.tally = Tally()

    def _assemble(self, forks: bool, slots: Sequence[crew.Slot], computer: Computer) -> crew.Crew:
        if forks:
            computer.load(self._rounds)
            # A system may allow no more processes.
            with suppress(OSError):
                return crew.Processes(self._budget.workers, slots, computer, self._rounds)
        return crew.Threads(self._budget.workers, slots, computer)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._crew.close()

    def chunks(self, turn: int) -> Iterator[tuple[memoryview, ...]]:
        """The bytes of a round's tasks in order, one buffer per layout, all of one read.

        Buffers are valid until the next are asked for. Raises InputError, NumericsError,
        MismatchError or WorkerError as they come up.
        """
        pieces = enumerate(cut(self._rounds[turn], self._budget))
        pending: deque[tuple[int, Piece, int]] = deque()
        try:
            while True:
                while self._free:
                    number, piece = next(pieces, (0, None))
                    if piece is None:
                        break
                    slot = self._free.pop()
                    pending.append((number, piece, slot))
                    self._crew.submit((turn, number), piece, slot)
                if not pending:
                    return
                number, piece, slot = pending[0]
                self._count(piece, self._crew.result((turn, number)))
                yield crew.views(self._crew.slots[slot], piece)
                pending.popleft()
                self._free.append(slot)
        finally:
            self._crew.abandon()
            self._free += [slot for _, _, slot in pending]

    def _count(self, piece: Piece, found: Found) -> None:
        self.tally.read += piece.nbytes_read
        self.tally.written += piece.nbytes * len(piece.rows)
        if found.odd is not None:
            integer = piece.task.kind == "integer"
            noted = self.tally.differing_integers if integer else self.tally.nonfinite
            noted[found.odd] = None
        if self.geometry is not None and found.geometry is not None:
            self.geometry.add(found.geometry)


def _geometry(count: int) -> Geometry:
    from swavg.geometry import Geometry

    return Geometry(count)
