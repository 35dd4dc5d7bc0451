"""From a layout to its name: what is opened for writing, verified, and published."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from swavg import publish
from swavg.errors import InputError, OutputError
from swavg.formats.base import Layout
from swavg.formats.files import open_input
from swavg.formats.output import Output
from swavg.guard import refuse_other_files

OpenSink = Callable[[Layout], AbstractContextManager[publish.Sink]]


@contextmanager
def publishing(
    output: Output, force: bool, on_publish: Callable[[], object] = lambda: None
) -> Iterator[OpenSink]:
    """Gives what opens the sink of a layout; publishes when the block ends well.

    With ``force`` what is there already is replaced. ``on_publish`` is called before anything gets
    its name. Raises OutputError or InputError; the
    destination is then as it was.
    """
    target = output.target
    path = target.path
    if path is None:
        yield lambda layout: nullcontext(publish.Sink(publish.STDOUT, sys.stdout.fileno()))
    elif target.kind == "folder":
        with publish.new_folder(path, force=force, on_publish=on_publish) as folder:

            @contextmanager
            def open_shard(layout: Layout) -> Iterator[publish.Sink]:
                with publish.write_into(folder, layout.name, shown=path) as sink:
                    yield sink
                _verify(layout, sink.path, path)

            yield open_shard
            for name, data in output.files.items():
                with publish.write_into(folder, name, shown=path) as sink:
                    sink.write(data)
            for name, source in output.side_files.items():
                _copy(source, name, folder, path)
            # The run may have taken an hour, in which someone put something there.
            if os.path.isdir(path):
                refuse_other_files(path, output)
    else:
        with publish.new_file(path, force=force, on_publish=on_publish) as sink:
            yield lambda layout: nullcontext(sink)
            if not publish.is_stream(path):
                _verify(output.layouts[0], sink.path, path)


def _verify(layout: Layout, path: str, shown: str) -> None:
    try:
        layout.verify(path)
    except OutputError as error:
        # Its temporary name means nothing to anyone.
        raise OutputError(shown, error.problem) from None


def _copy(source: str, name: str, folder: Any, shown: str) -> None:
    with open_input(source) as (fd, file), publish.write_into(folder, name, shown=shown) as sink:
        position = 0
        while position < file.size:
            try:
                data = os.pread(fd, 1 << 20, position)
            except OSError as error:
                raise InputError(source, f"read error: {error.strerror}") from None
            if not data:
                raise InputError(source, "was cut short while it was copied")
            sink.write(data)
            position += len(data)
