"""The outputs of a plan: what would keep them from their names, and how they get them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from swavg.engine.report import Tally
from swavg.engine.results import Sinks
from swavg.errors import OutputError
from swavg.formats.folder import LOGS, weights_stem
from swavg.planning.plan import Output, Plan
from swavg.storage import publish
from swavg.storage.destination import Destination, check_destinations, is_stored, is_stream
from swavg.storage.paths import find_file
from swavg.storage.pending import Pending
from swavg.storage.pool import Pool
from swavg.storage.protect import check_not_input, check_only_ours, check_stdout_not_input
from swavg.storage.sinks import STDOUT, allow_open
from swavg.storage.streams import open_stream


def check(plan: Plan, *, begun: bool = False) -> None:
    """Raise OutputError if the outputs could not be published: one exists and may not be replaced,
    is an input, or the disk has no room (which they have already if they are ``begun``)."""
    inputs = [(checkpoint.path, checkpoint.sources) for checkpoint in plan.checkpoints]
    inputs += [(root, ()) for root in (plan.parts.roots if plan.parts is not None else ())]
    if goes_to_store(plan):
        from swavg.engine import uploads

        uploads.check(plan, inputs)
        return
    # The parts of a composite go to one path.
    for path in dict.fromkeys(output.target.path for output in plan.outputs):
        if path is None:
            if len(plan.outputs) > 1:
                raise OutputError(STDOUT, "can only be a single output")
            check_stdout_not_input(inputs)
            return
        check_not_input(path, inputs)
    sizes = [0 if begun else output.size for output in plan.outputs]
    whole = [sum(sizes[first : first + plan.width]) for first in range(0, len(sizes), plan.width)]
    # Before force= is offered, which would not replace it either.
    _check_replaced(plan)
    check_destinations(_destinations(plan), whole, inside=plan.folder)


def goes_to_store(plan: Plan) -> bool:
    """Whether some outputs go to an object store."""
    return any(is_stored(output.target.path) for output in plan.outputs)


def goes_to_stream(plan: Plan) -> bool:
    """Whether some outputs go to standard output, a FIFO or a device."""
    paths = (output.target.path for output in plan.outputs)
    return any(path is None or is_stream(path) for path in paths)


def _check_replaced(plan: Plan) -> None:
    """OutputError if a folder would be replaced that holds more than an older checkpoint, which
    may have logs that are left out now."""
    written: dict[str, set[str]] = {}
    for row, output in zip(plan.rows, plan.outputs, strict=True):
        path = output.target.path
        if output.target.folder and path is not None and os.path.isdir(path):
            files = (file.layout.name for file in output.files)
            logs = {*LOGS}.intersection(plan.checkpoints[row.members[-1]].extras.left_out)
            own = (os.path.join(output.target.part or "", name) for name in logs)
            written.setdefault(path, set()).update(files, output.small, output.side_files, own)
    force = plan.outputs[0].target.force
    for path, names in written.items():
        check_only_ours(path, names, weights_stem, force=force)


@contextmanager
def publishing(
    plan: Plan, tally: Tally, on_publish: Callable[[], object], *, kept: bool = False
) -> Iterator[Sinks]:
    """The sinks of all outputs, which get their names when the block ends well: once all are
    synced and verified. ``kept``: parts of them lie there already, and stay if it does not."""
    if goes_to_store(plan):
        from swavg.engine import uploads

        with uploads.publishing(plan, tally, on_publish) as sinks:
            yield sinks
        return
    path = plan.outputs[0].target.path
    if path is None or is_stream(path):
        (file,) = plan.outputs[0].files
        regions = () if file.layout.checksum is None else file.offsets
        with open_stream(path, file.layout, regions) as stream:
            yield [[stream]]
        return
    destinations = _destinations(plan)
    with publish.publishing(
        destinations, inside=plan.folder, on_publish=on_publish, kept=kept
    ) as pendings:
        places = [pendings[row // plan.width] for row in range(len(plan.outputs))]
        yield _created(plan, pendings)
        for pending in pendings:
            own = [output for output, place in zip(plan.outputs, places, strict=True)
                   if place is pending]  # fmt: skip
            for output in own:
                write_others(output, pending)
            pending.sync()
            for output in own:
                _verify(output, pending)
        # The run may have taken an hour, in which someone put something there.
        _check_replaced(plan)
    for pending in pendings:
        tally.notes += pending.notes
        tally.warnings += pending.warnings


def _destinations(plan: Plan) -> list[Destination]:
    """Where the outputs go: the parts of a composite to one place."""
    return [
        Destination(os.fspath(output.target.path or ""), output.target.folder, output.target.force)
        for output in plan.outputs[:: plan.width]
    ]


@contextmanager
def shared(plan: Plan) -> Iterator[Sinks]:
    """The sinks of all outputs under names that several runs know; what is written is on the disk
    when the block ends well."""
    with publish.shared(_destinations(plan), inside=plan.folder) as pendings:
        yield _created(plan, pendings)


def shared_paths(plan: Plan) -> list[str]:
    """Where the bytes of the outputs lie that :func:`shared` gives."""
    return [publish.shared_path(each, inside=plan.folder) for each in _destinations(plan)]


def shared_files(plan: Plan) -> Iterator[tuple[str, int]]:
    """The files there by path, and what size each has once it was made."""
    paths = shared_paths(plan)
    for row, output in enumerate(plan.outputs):
        path = paths[row // plan.width]
        for file in output.files:
            name = file.layout.name
            yield os.path.join(path, name) if name else path, file.layout.size


def _created(plan: Plan, pendings: Sequence[Pending]) -> Sinks:
    allow_open(sum(len(output.files) + len(output.side_files) for output in plan.outputs))
    return [
        [pendings[row // plan.width].create(file.layout.name, file.layout.size)
         for file in output.files]
        for row, output in enumerate(plan.outputs)
    ]  # fmt: skip


class _Folder(Protocol):
    def create(self, name: str = "", size: int = 0) -> _Created: ...


class _Created(Protocol):
    def pwrite(self, offset: int, data: bytes | bytearray) -> None: ...


def write_others(output: Output, folder: _Folder) -> None:
    """The files that go along, and then the small ones of a folder: an index last."""
    with Pool() as pool:
        for name, path in output.side_files.items():
            source = find_file(path)
            sink = folder.create(name, source.size)
            for offset in range(0, source.size, 1 << 20):
                size = min(1 << 20, source.size - offset)
                sink.pwrite(offset, pool.read(source, offset, size))
    for name in sorted(output.small, key=is_index):
        data = output.small[name]
        folder.create(name, len(data)).pwrite(0, data)


def is_index(name: str) -> bool:
    """Whether a folder is read by what a file of this name says."""
    return ".index." in name or name.endswith((".index", ".metadata"))


def _verify(output: Output, pending: Pending) -> None:
    for file in output.files:
        path = os.path.join(pending.path, file.layout.name) if file.layout.name else pending.path
        try:
            file.layout.verify(path)
        except OutputError as error:
            # Its temporary name means nothing to anyone.
            raise OutputError(output.target.path or "", error.problem) from None


def write_fixed(plan: Plan, sinks: Sinks) -> None:
    """Write what does not depend on the data. A stream does so itself, in its turn."""
    for output, row in zip(plan.outputs, sinks, strict=True):
        for file, sink in zip(output.files, row, strict=True):
            if sink.forks:
                for offset, data in file.layout.fixed():
                    sink.pwrite(offset, data)


def write_deferred(plan: Plan, tally: Tally, sinks: Sinks) -> None:
    """Write what follows from the checksums of regions. A stream does so itself, in its turn."""
    for row, output in enumerate(plan.outputs):
        for number, (file, sink) in enumerate(zip(output.files, sinks[row], strict=True)):
            if sink.forks:
                for offset, make in file.layout.deferred(partial(tally.crc, row, number)):
                    sink.pwrite(offset, make())
