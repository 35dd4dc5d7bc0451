"""What an output must not touch: inputs, and files that are not its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from swavg.errors import OutputError
from swavg.formats.base import Checkpoint
from swavg.formats.folder import weights_stem
from swavg.formats.output import Output


def refuse_inputs(path: str, checkpoints: Sequence[Checkpoint]) -> None:
    """Raise OutputError if publishing would touch an input, the links that lead to one, or a folder
    that is one."""
    real = os.path.realpath(path)
    for checkpoint in checkpoints:
        # A new file in it may be what is read next time.
        if os.path.isdir(checkpoint.path) and real.startswith(
            os.path.realpath(checkpoint.path) + os.sep
        ):
            raise OutputError(
                path,
                f"lies in the input {checkpoint.path}",
                hint="swavg never changes an input; choose another -o.",
            )
    try:
        facts = os.stat(path)
    except OSError:
        return
    for checkpoint in checkpoints:
        same = any(
            (file.device, file.inode) == (facts.st_dev, facts.st_ino) for file in checkpoint.files
        )
        # Where they lie by name as well as by content: in the hub cache, shards are links.
        places = [checkpoint.path, *(file.path for file in checkpoint.files)]
        found = {os.path.realpath(place) for place in places}
        for place in places:
            parent, name = os.path.split(os.path.abspath(place))
            found.add(os.path.join(os.path.realpath(parent), name))
        if same or real in found or any(place.startswith(real + os.sep) for place in found):
            raise OutputError(
                path,
                f"holds the input {checkpoint.path}" if os.path.isdir(path) else "is an input",
                hint="swavg never writes over an input; choose another -o.",
            )


def refuse_inputs_as_stdout(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise OutputError if standard output was redirected into an input (``-o - >> a``)."""
    facts = os.fstat(sys.stdout.fileno())
    for checkpoint in checkpoints:
        for file in checkpoint.files:
            if (file.device, file.inode) == (facts.st_dev, facts.st_ino):
                raise OutputError("standard output", f"is the input {file.path}")


def refuse_other_files(path: str, output: Output) -> None:
    """Raise OutputError if replacing the folder would lose anything but an older checkpoint."""
    written = {layout.name for layout in output.layouts} | {*output.files, *output.side_files}
    stems = {weights_stem(layout.name) for layout in output.layouts}
    others = [
        entry.name
        for entry in os.scandir(path)
        if entry.name not in written
        # Weights of another name (step-100.safetensors) are not ours to remove.
        and (entry.is_dir(follow_symlinks=False) or weights_stem(entry.name) not in stems)
    ]
    if others:
        shown = ", ".join(sorted(others)[:4]) + (", ..." if len(others) > 4 else "")
        raise OutputError(
            path,
            f"would be replaced, but holds what the new checkpoint does not: {shown}",
            hint="Choose another -o, or remove the folder yourself.",
        )
