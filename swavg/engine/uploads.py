"""Outputs in object stores: streamed where the bytes of an output are made in order, else made in a
temporary folder and sent when they are finished."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from swavg.engine import outputs
from swavg.engine.report import Tally
from swavg.engine.results import Sinks
from swavg.errors import OutputError, RequestError
from swavg.formats.table import FORMATS
from swavg.planning.plan import Output, Plan
from swavg.storage.destination import is_stored
from swavg.storage.filesystems import check_room
from swavg.storage.protect import Input
from swavg.storage.streams import StreamSink
from swavg.storage.upload_checks import (
    check_absent,
    check_folder,
    check_no_folder,
    check_not_input,
    writable,
)
from swavg.storage.uploads import Uploads

_CHUNK = 1 << 20


def check(plan: Plan, inputs: Sequence[Input]) -> None:
    """Raise OutputError if the outputs could not be sent: one exists and may not be replaced, is an
    input, or there is no room for what is sent when it is finished. RequestError without
    credentials."""
    places = set()
    for path, own in _by_path(plan).items():
        location, target = writable(path), own[0].target
        if location in places:
            raise OutputError(path, "is where another output goes already")
        places.add(location)
        check_not_input(location, inputs, folder=target.folder)
        if target.folder:
            check_folder(location, _names(own), force=target.force)
        else:
            check_absent(location, force=target.force)
            check_no_folder(location)
    if not _is_streamed(plan):
        folder = tempfile.gettempdir()
        try:
            check_room(folder, sum(output.size for output in plan.outputs), shown=folder)
        except OutputError as error:
            error.hint = "What is sent when it is finished is made there. Set TMPDIR to another."
            raise


@contextmanager
def publishing(plan: Plan, tally: Tally, on_publish: Callable[[], object]) -> Iterator[Sinks]:
    """The sinks of all outputs, which appear when the block ends well: but for shards, each of
    which does so when it is complete."""
    with _streamed(plan) if _is_streamed(plan) else _staged(plan, tally) as (sinks, sent):
        yield sinks
    on_publish()
    for uploads in sent:
        uploads.verify()


@contextmanager
def _streamed(plan: Plan) -> Iterator[tuple[Sinks, list[Uploads]]]:
    ((path, (output,)),) = _by_path(plan).items()
    with Uploads(writable(path), force=output.target.force) as uploads:
        uploads.remove([name for name in output.small if outputs.is_index(name)])
        last = output.files[-1]
        sent = [
            uploads.create(file.layout.name, file.layout.size, last=file is last)
            for file in output.files
        ]
        streams = [
            StreamSink(upload, file.layout, () if file.layout.checksum is None else file.offsets)
            for upload, file in zip(sent, output.files, strict=True)
        ]
        try:
            yield [streams], [uploads]
            for stream, upload in zip(streams, sent, strict=True):
                stream.finish()
                upload.end()
        except BaseException as error:
            for stream in streams:
                stream.fail(error)
            raise
        outputs.write_others(output, uploads)


@contextmanager
def _staged(plan: Plan, tally: Tally) -> Iterator[tuple[Sinks, list[Uploads]]]:
    with tempfile.TemporaryDirectory(prefix="swavg-") as folder, ExitStack() as stack:
        by_path = _by_path(plan)
        places = {
            path: os.path.join(folder, str(number), os.path.basename(path))
            for number, path in enumerate(by_path)
        }
        made = replace(
            plan,
            outputs=tuple(
                replace(each, target=replace(each.target, path=places[each.target.path or ""]))
                for each in plan.outputs
            ),
            folder=None,
        )
        sent: list[Uploads] = []
        with outputs.publishing(made, tally, lambda: None) as sinks:
            yield sinks, sent
        for path, own in by_path.items():
            uploads = Uploads(writable(path), force=own[0].target.force)
            sent.append(stack.enter_context(uploads))
            names = sorted(_names(own), key=outputs.is_index) if own[0].target.folder else [""]
            uploads.remove([name for name in names if outputs.is_index(name)])
            for name in names:
                _send(uploads, name, os.path.join(places[path], name) if name else places[path])


def _send(uploads: Uploads, name: str, path: str) -> None:
    with open(path, "rb") as file:
        upload = uploads.create(name, os.path.getsize(path))
        while data := file.read(_CHUNK):
            upload.write(data)


def _by_path(plan: Plan) -> dict[str, list[Output]]:
    """The parts of a composite go to one place."""
    found: dict[str, list[Output]] = {}
    for output in plan.outputs:
        path = output.target.path
        if path is None or not is_stored(path):
            raise RequestError("Outputs go to object stores all, or none.")
        found.setdefault(path, []).append(output)
    return found


def _names(own: Sequence[Output]) -> list[str]:
    """The names of the files in a folder."""
    found = dict.fromkeys(file.layout.name for output in own for file in output.files)
    for output in own:
        found |= dict.fromkeys((*output.side_files, *output.small))
    return list(found)


def _is_streamed(plan: Plan) -> bool:
    """Whether bytes are made in the order in which they leave: those of one output whose files are
    each complete in itself."""
    if len(plan.outputs) > 1:
        return False
    format = plan.outputs[0].target.format
    return format == "folder" or not FORMATS[format].folder
