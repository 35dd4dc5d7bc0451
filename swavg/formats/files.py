"""The formats of single files, and which of them a file has: told by its bytes, not its suffix."""

from __future__ import annotations

from swavg.errors import InputError, NoWeightsError
from swavg.formats import flax, keras, npz, safetensors, torch
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import Format
from swavg.formats.part_names import is_of_ranks
from swavg.formats.tensors import Shared
from swavg.storage.paths import read_file

# A safetensors length may begin with the magic of another format: 640 with that of a pickle.
FILES: dict[str, Format] = {
    row.name: row
    for row in (
        safetensors.FORMAT, torch.FORMAT, torch.LEGACY, npz.FORMAT, keras.HDF5, keras.ARCHIVE,
        flax.FORMAT,
    )
}  # fmt: skip

_HEAD = 512


def recognised(path: str) -> Format | None:
    """The format of the file at ``path``; None if it is none of these. InputError if it cannot be
    read."""
    head = read_file(path, _HEAD)
    # It looks like a whole file.
    if is_of_ranks(path):
        return None
    return next((row for row in FILES.values() if row.recognises(head)), None)


def open_file(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open a file of any format. Raises InputError; what it is otherwise, if that can be told."""
    row = recognised(path)
    if row is None:
        raise unknown(path)
    return row.open(path, key, shared)


def unknown(path: str) -> InputError:
    """What a file is that is of no format here."""
    head = read_file(path, _HEAD)
    if not head:
        return InputError(path, "is empty (0 bytes)")
    if is_of_ranks(path):
        return InputError(path, "is a part of a distributed checkpoint", hint="Give its folder.")
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
