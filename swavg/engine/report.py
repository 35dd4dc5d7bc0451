"""What was done, or will be: plain values that can be shown or turned into JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from swavg.engine.checksums import Reads
from swavg.engine.differing import doubtful_means
from swavg.engine.distances import Distances
from swavg.engine.recipe import short_names
from swavg.engine.resources import Resources, Sizes
from swavg.engine.results import TaskResult
from swavg.formats.checkpoint import Checkpoint
from swavg.planning.plan import Output, Plan
from swavg.short_repr import ShortRepr
from swavg.storage.destination import is_stored

STDOUT = "-"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: bytes read so far and in all, seconds since it began."""

    read: int
    total: int
    seconds: float


@dataclass(frozen=True, slots=True)
class InputSummary:
    """An input as a report shows it."""

    name: str
    path: str
    weight: float
    size: int
    """Bytes on disk."""
    format: str
    tensors: int
    dtypes: Mapping[str, int]
    """Elements of each dtype."""
    relative_distance: float | None = None
    """After a run: ||input - average|| / ||average||, estimated (:mod:`swavg.engine.distances`)."""
    cosine: float | None = None
    """That of the angle between the two, estimated."""


@dataclass(frozen=True, repr=False)
class Report(ShortRepr):
    """What was (or, before a run, will be) done for one output."""

    output: str
    format: str
    inputs: tuple[InputSummary, ...]
    tensors: Mapping[str, int]
    """How many were averaged, integer, copied, dropped, excluded."""
    elements: int
    read: int
    """Bytes; of several outputs that are made of one read, the first counts it."""
    written: int
    """Bytes."""
    files: int
    memory: int
    """The bound on buffers, in bytes."""
    threads: int
    """The number of workers."""
    device: str
    not_averaged: tuple[Mapping[str, str], ...] = ()
    """Tensors that were not averaged over all inputs: name, action, reason."""
    ties: tuple[tuple[str, ...], ...] = ()
    differing_integers: tuple[str, ...] = ()
    nonfinite: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """What may make the result useless: inputs that look wrong."""
    running_statistics: tuple[str, ...] = ()
    """Batch-norm buffers that were averaged like weights."""
    recipe: Mapping[str, object] = field(default_factory=dict)
    seconds: float | None = None
    """None before a run."""
    parts: tuple[str, ...] = ()
    """Of a composite."""
    dry_run: bool = False
    """Nothing was written."""
    up_to_date: bool = False
    """Nothing was written, as the output is there already."""

    def facts(self) -> Mapping[str, object]:
        return {
            **super().facts(),
            "inputs": {each.name: each.weight for each in self.inputs},
            "tensors": {what: count for what, count in self.tensors.items() if count},
        }

    def to_json(self) -> dict[str, object]:
        """Plain values for ``json.dumps``."""
        return asdict(self)


@dataclass(slots=True)
class Tally:
    """What a run has done so far, from the results of its tasks in any order."""

    plan: Plan
    total: int
    """Bytes to read."""
    planned: int
    """Bytes of all regions."""
    distances: tuple[Distances, ...] = ()
    """Of each row, if they are wanted."""
    read: int = 0
    written: int = 0
    done: set[int] = field(default_factory=set)
    crcs: dict[tuple[int, int, int], list[tuple[int, int, int]]] = field(default_factory=dict)
    """By row, file and region: start, checksum and bytes of its parts."""
    differing: set[tuple[int, int]] = field(default_factory=set)
    nonfinite: set[tuple[int, int]] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reads: Reads = field(default_factory=Reads)
    nodes: set[str] = field(default_factory=set)
    """Of a cluster, that did tasks."""
    lost: int = 0
    """Tasks that were begun by a worker that was lost."""

    def add(self, result: TaskResult) -> None:
        """Count a task. AssertionError if it was done before."""
        assert result.number not in self.done, f"task {result.number} was done twice"
        self.done.add(result.number)
        self.read += result.read
        self.written += result.written
        self.differing |= result.differing
        self.nonfinite |= result.nonfinite
        self.reads.add(result.reads)
        self.nodes |= {result.node} - {""}
        self.lost += result.lost
        for row, sums in result.distances:
            self.distances[row].add(sums)
        for found in result.checksums:
            parts = self.crcs.setdefault((found.row, found.file, found.offset), [])
            parts.append((found.start, found.crc, found.nbytes))

    def complete(self) -> None:
        """AssertionError unless every task was done once, and every byte of every region written:
        where space was reserved a hole reads as zeros."""
        assert len(self.done) == len(self.plan.tasks()), "tasks are missing"
        assert self.written == self.planned, f"{self.written} of {self.planned} bytes written"
        if self.nodes:
            several = len(self.nodes) > 1
            self.notes.append(f"made on {len(self.nodes)} node{'s' * several} of a Ray cluster")
        if self.lost:
            tasks = "1 task was" if self.lost == 1 else f"{self.lost} tasks were"
            self.notes.append(f"{tasks} run again: a worker or a node was lost")

    def crc(self, row: int, own: int, offset: int, file: int | None = None) -> int:
        """The checksum of the region at this offset of a file (None: of number ``own``)."""
        from swavg.storage.crc import combined

        number = own if file is None else file
        kind = self.plan.outputs[row].files[number].layout.checksum
        assert kind is not None
        parts = sorted(self.crcs[row, number, offset])
        return combined(((crc, nbytes) for _, crc, nbytes in parts), kind)


def read_and_written(plan: Plan, row: int) -> tuple[int, int]:
    """Bytes that a row reads (unless an earlier one does), and that its regions have."""
    entries, read, written = plan.entries, 0, 0
    alike: Counter[tuple[int, ...]] = Counter()
    example: dict[tuple[int, ...], int] = {}
    for entry in {entry for file in plan.outputs[row].files for entry in file.entries}:
        key = entries.key(entry)
        alike[key] += 1
        example[key] = entry
    for key, count in alike.items():
        made = entries.make(plan.checkpoints, example[key])
        written += count * made.operation.dtype.nbytes(math.prod(made.shape))
        if made.operation.terms[0].row == row:
            read += count * sum(tensor.spec.nbytes for tensor in made.tensors)
    return read, written


def report(
    plan: Plan,
    row: int,
    sizes: Sizes,
    resources: Resources,
    tally: Tally | None = None,
    seconds: float | None = None,
) -> Report:
    """The report of one row, before a run or with what it found out."""
    output, members = plan.outputs[row], plan.rows[row].members
    differing, nonfinite = (set(), set()) if tally is None else (tally.differing, tally.nonfinite)
    weights = plan.rows[row].weights
    names = [plan.shown[member] for member in members]
    if plan.parts is not None:
        whole = short_names(plan.parts.roots)
        names = [whole[member // plan.width] for member in members]
    measured = tally is not None and tally.distances and row % plan.width == 0
    distances = tally.distances[row] if tally is not None and measured else None
    nothing = (None,) * len(members)
    far = (distances and distances.distances()) or nothing
    cosines = (distances and distances.cosines()) or nothing
    return Report(
        output=STDOUT if output.target.path is None else output.target.path,
        format=output.target.format if output.target.part is None else "folder",
        inputs=tuple(
            summary_of(plan.checkpoints[member], name, weight, distance, cosine)
            for member, name, weight, distance, cosine in zip(
                members, names, weights, far, cosines, strict=True
            )
        ),
        tensors=output.counts,
        elements=output.elements,
        read=read_and_written(plan, row)[0],
        written=output.size,
        files=len(output.files),
        memory=sizes.memory + _sending(output),
        threads=sizes.workers,
        device=resources.device,
        not_averaged=tuple(asdict(each) for each in output.not_averaged),
        ties=output.ties,
        differing_integers=_named(plan, row, plan.differing, differing),
        nonfinite=_named(plan, row, plan.nonfinite, nonfinite),
        notes=(*plan.notes, *output.notes, *(tally.notes if tally is not None else ())),
        warnings=(
            *plan.warnings,
            *output.warnings,
            *(distances.warnings(names, weights) if distances is not None else ()),
            *(tally.warnings if tally is not None else ()),
            *doubtful_means(plan, row, tally.differing if tally is not None else ()),
        ),
        running_statistics=output.running_statistics,
        recipe=plan.recipes[row],
        seconds=seconds,
    )


def _sending(output: Output) -> int:
    """Bytes that are held of an output that goes to an object store."""
    if not is_stored(output.target.path):
        return 0
    from swavg.storage.uploads import buffers

    return max((buffers(file.layout.size) for file in output.files), default=0)


def _named(
    plan: Plan,
    row: int,
    beforehand: Mapping[int, tuple[str, ...]],
    found: set[tuple[int, int]],
) -> tuple[str, ...]:
    """The names of a row's entries, behind those of tensors that were computed with the plan."""
    return tuple(dict.fromkeys((*beforehand.get(row, ()), *entry_names(plan, row, found))))


def entry_names(plan: Plan, row: int, found: set[tuple[int, int]]) -> tuple[str, ...]:
    """The names of a row's entries, in the order of its output."""
    home = plan.outputs[row].home
    entries = sorted((entry for at, entry in found if at == row), key=home.__getitem__)
    return tuple(plan.name(row, entry) for entry in entries)


def summary_of(
    checkpoint: Checkpoint,
    name: str,
    weight: float,
    distance: float | None = None,
    cosine: float | None = None,
) -> InputSummary:
    """The facts of an input."""
    return InputSummary(
        name,
        checkpoint.path,
        weight,
        checkpoint.size,
        checkpoint.format,
        len(checkpoint),
        checkpoint.dtypes,
        distance,
        cosine,
    )
