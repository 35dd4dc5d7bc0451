"""The formats of single files, and which of them a file has: told by its bytes, not its suffix."""

from __future__ import annotations

from swavg.errors import InputError, NoWeightsError
from swavg.formats import flax, keras, npz, safetensors, torch
from swavg.formats.checkpoint import Checkpoint, Shared
from swavg.formats.layout import Format
from swavg.storage.sources import read_file

# A safetensors length may begin with the magic of another format: 640 with that of a pickle.
FILES: dict[str, Format] = {
    row.name: row
    for row in (
        safetensors.FORMAT, torch.FORMAT, torch.LEGACY, npz.FORMAT, keras.HDF5, keras.ARCHIVE,
        flax.FORMAT,
    )
}  # fmt: skip

_HEAD = 512


def open_file(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open a file of any format. Raises InputError; what it is otherwise, if that can be told."""
    return format_in(path).open(path, key, shared)


def format_in(path: str) -> Format:
    """The format of a file. Raises InputError; what it is otherwise, if that can be told."""
    head = read_file(path, _HEAD)
    if not head:
        raise InputError(path, "is empty (0 bytes)")
    if path.endswith(".distcp"):
        # It looks like a torch file.
        raise InputError(path, "is a part of a distributed checkpoint", hint="Give its folder.")
    for row in FILES.values():
        if row.recognises(head):
            return row
    from swavg.formats.places import format_at

    if (place := format_at(path)) is not None:
        return place
    raise _unknown(path, head)


def recipe_in(path: str) -> str | None:
    """What swavg wrote of an average into a file; None if it is none. InputError."""
    head = read_file(path, _HEAD)
    row = next((row for row in FILES.values() if row.recognises(head)), None)
    if row is None:
        from swavg.formats.places import format_at

        row = format_at(path)
    return None if row is None else row.recipe_in(path)


def _unknown(path: str, head: bytes) -> InputError:
    from swavg.formats.foreign import explain, first_line

    known = explain(path, head)
    if known is None and path.endswith(".safetensors"):
        # It says itself what is wrong.
        safetensors.FORMAT.open(path)
    text = first_line(head)
    return known or NoWeightsError(
        path,
        "is neither a safetensors nor a PyTorch file"
        + (f"; it is text that begins with '{text}'" if text else ""),
        hint="swavg reads .safetensors, .pt/.pth/.bin/.ckpt, .npz, folders of these, and"
        " checkpoints of TensorFlow, Keras, Flax, Orbax, DeepSpeed and torch.distributed.",
    )
