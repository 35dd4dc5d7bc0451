"""Outputs that appear whole and durable under their names, all of them or none.

A file or folder is written under a temporary name beside its destination, synced, and renamed when
all are complete. Until then each name is as it was; on any error it is so again. What no system
can promise: that others see several names change at one moment, or that all or none have changed
after kill -9 or a power failure between the first rename and the last (each is whole).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from swavg.errors import OutputError, SwavgError
from swavg.storage.destination import Destination, destination, is_stream, parent
from swavg.storage.filesystems import exchange, sync_folder
from swavg.storage.pending import Pending, Renamed
from swavg.storage.sinks import Buffer, write_error
from swavg.storage.streams import Pipe, open_pipe
from swavg.storage.temporary import Kept, Temporary, kept_name, remove


@contextmanager
def publishing(
    outputs: Sequence[Destination],
    *,
    inside: str | None = None,
    on_publish: Callable[[], object] = lambda: None,
    kept: bool = False,
) -> Iterator[Sequence[Pending]]:
    """Gives one pending output per destination; they get their names when the block ends well.

    Folders that are missing above them are made. ``inside`` is the folder that all lie in directly:
    if there is none yet, it is made, and appears in one step with all that is in it.
    ``on_publish`` is called once, before the first name is given, from where on signals should
    wait. ``kept``: what lies under the names of :func:`shared` is taken, and stays if the block
    fails. OutputError: all names are as they were, and nothing else is left.
    """
    if (whole_path := _whole(inside)) is None:
        with ExitStack() as stack:
            above: list[str] = []
            for output in outputs:
                above += stack.enter_context(parents_made(output.path))
            yield stack.enter_context(_publishing(outputs, on_publish, above, kept=kept))
        return
    folder = Destination(whole_path, folder=True, force=False)
    with (
        parents_made(whole_path) as made,
        _publishing([folder], on_publish, made, kept=kept) as (whole,),
    ):
        parts = [_part(output, whole) for output in outputs]
        try:
            yield parts
            for part in parts:
                part.sync()
        finally:
            for part in parts:
                part.abandon()


@contextmanager
def shared(
    outputs: Sequence[Destination], *, inside: str | None = None
) -> Iterator[Sequence[Pending]]:
    """Gives one pending output per destination, under a name that several runs know, at once or
    one after the other; what they write stays. OutputError."""
    whole = _whole(inside)
    with ExitStack() as stack:
        pendings = []
        for output in [Destination(whole, folder=True, force=False)] if whole else outputs:
            stack.enter_context(parents_made(output.path))
            temporary = Kept(destination(output.path), shared=True)
            temporary.create(folder=output.folder, shown=output.path)
            stack.callback(temporary.close)
            pendings.append(Pending(output, temporary.path, kept=True))
        if whole:
            pendings = [_part(output, pendings[0]) for output in outputs]
        for pending in pendings:
            stack.callback(pending.abandon)
        yield pendings
        for pending in pendings:
            pending.sync()


def _whole(inside: str | None) -> str | None:
    """``inside`` if it is still to be made, and so appears with all outputs in it."""
    return None if inside is None or os.path.lexists(destination(inside)) else inside


def shared_path(output: Destination, *, inside: str | None = None) -> str:
    """Where the bytes of an output lie that :func:`shared` gives."""
    whole = _whole(inside)
    if whole is None:
        return kept_name(destination(output.path))
    return os.path.join(kept_name(destination(whole)), _base(output))


def _base(output: Destination) -> str:
    return os.path.basename(output.path.rstrip("/"))


def _part(output: Destination, whole: Pending) -> Pending:
    """An output in a folder that is renamed as a whole."""
    part = Pending(output, os.path.join(whole.path, _base(output)), kept=whole.kept)
    part.notes, part.warnings = whole.notes, whole.warnings
    if output.folder:
        try:
            os.makedirs(part.path, exist_ok=whole.kept)
        except OSError as error:
            raise write_error(output.path, error) from None
    return part


@contextmanager
def parents_made(path: str) -> Iterator[Sequence[str]]:
    """Make the folders above ``path``; if the block fails they are removed again."""
    made: list[str] = []
    missing = []
    folder = parent(destination(path))
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = parent(folder)
    try:
        for folder in reversed(missing):
            try:
                os.mkdir(folder)
                made.append(folder)
            except FileExistsError:
                pass
            except OSError as error:
                raise write_error(path, error) from None
        yield made
    except BaseException:
        for folder in reversed(made):
            # Not if somebody else put something there.
            with suppress(OSError):
                os.rmdir(folder)
        raise


@contextmanager
def _publishing(
    outputs: Sequence[Destination],
    on_publish: Callable[[], object],
    made: Sequence[str] = (),
    *,
    kept: bool = False,
) -> Iterator[Sequence[Renamed]]:
    pending = []
    with ExitStack() as stack:
        for output in outputs:
            if is_stream(output.path):
                raise OutputError(output.path, "is a pipe or device, which has no name to be given")
            one = Renamed(output, kept=kept)
            stack.callback(one.end)
            one.begin()
            pending.append(one)
        if len(pending) > 1:
            _check_replaceable(pending)
        yield pending
        for one in pending:
            one.sync()
            one.keep_mode()
        on_publish()
        _give_names(pending)
        _sync_parents(pending, made)


def _give_names(pending: Sequence[Renamed]) -> None:
    try:
        for one in pending:
            one.give_name(keep_old=len(pending) > 1)
    except BaseException as error:
        kept = [text for one in reversed(pending) if (text := one.take_back())]
        if kept and isinstance(error, SwavgError):
            error.hint = " ".join([*kept, *filter(None, [error.hint])])
        raise


def _sync_parents(pending: Sequence[Renamed], made: Sequence[str]) -> None:
    """Nothing can be taken back reliably if that fails: the names stay."""
    for folder in dict.fromkeys(map(parent, [*(one.target for one in pending), *made])):
        try:
            sync_folder(folder)
        except OSError as error:
            pending[0].warnings.append(
                f"{folder} could not be synced ({error.strerror}): after a power failure the new"
                " names in it may be missing"
            )


def _check_replaceable(pending: Sequence[Renamed]) -> None:
    """Raise OutputError for what could not be put back if a later rename failed."""
    for one in pending:
        forced = one.output.force and os.path.lexists(one.target)
        if forced and not _can_keep_old(one):
            raise OutputError(
                one.output.path,
                "cannot be replaced together with others: its file system can neither exchange"
                " names nor link files",
                hint="Remove it first, or write one output at a time.",
            )


def _can_keep_old(pending: Renamed) -> bool:
    probe = Temporary(pending.target)
    try:
        probe.create(folder=pending.output.folder, shown=pending.target)
        if exchange(pending.path, probe.path):
            return exchange(pending.path, probe.path)
        if pending.output.folder:
            return False
        remove(probe.path)
        with suppress(OSError):
            os.link(pending.path, probe.path)
        return os.path.lexists(probe.path)
    except OSError as error:
        raise write_error(pending.target, error) from None
    finally:
        remove(probe.path)
        probe.close()


class NewFile:
    """A file that is written from its beginning to its end; its bytes can be read at ``path``."""

    def __init__(self, path: str, put: Callable[[int, Buffer], None], warnings: list[str]) -> None:
        self.path, self._put, self.warnings = path, put, warnings
        self.written = 0

    def write(self, data: Buffer) -> None:
        """Write all of ``data``, or raise OutputError."""
        self._put(self.written, data)
        self.written += len(data)


@contextmanager
def new_file(
    path: str | os.PathLike[str],
    *,
    force: bool = False,
    on_publish: Callable[[], object] = lambda: None,
) -> Iterator[NewFile]:
    """A file that is published as by :func:`publishing`; to a FIFO or device it is written
    directly."""
    shown = os.fspath(path)
    if is_stream(shown):
        with open_pipe(shown) as (fd, _):
            pipe = Pipe(fd, shown)
            yield NewFile(shown, lambda _, data: pipe.write(data), [])
        return
    output = Destination(shown, folder=False, force=force)
    with publishing([output], on_publish=on_publish) as (pending,):
        sink = pending.create()
        yield NewFile(sink.path, sink.pwrite, pending.warnings)
