"""Opening checkpoints: the one dispatch, by the bytes, not by the suffix."""

from __future__ import annotations

import os

from swavg.errors import InputError
from swavg.formats.base import Checkpoint
from swavg.formats.files import open_input, read_exactly
from swavg.formats.safetensors import Shared, looks_like_safetensors, open_safetensors

__all__ = ["open_checkpoint"]

_HEAD = 512

_KNOWN_OTHERS = (
    (
        b"version https://git-lfs",
        "is a Git LFS pointer, not the file itself",
        "Fetch the file with: git lfs pull.",
    ),
    (b"\x1f\x8b", "is compressed with gzip", "Decompress it first."),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "Decompress it first."),
    (b"\xfd7zXZ\x00", "is compressed with xz", "Decompress it first."),
    (b"\x89HDF\r\n", "is an HDF5 file (Keras), which swavg does not read", None),
    (b"GGUF", "is a GGUF file, which swavg does not read", "Average before converting to GGUF."),
    (b"\x93NUMPY", "is a NumPy array, which swavg does not read", None),
)


def open_checkpoint(
    path: str | os.PathLike[str], *, key: str | None = None, shared: Shared | None = None
) -> Checkpoint:
    """Open a checkpoint: a safetensors file, a PyTorch file (zip or legacy), or a folder of them.

    The kind is recognised by the bytes. Only headers and offsets are read; ``checkpoint[name]``
    is a lazy tensor, whose ``[...]`` or ``[a:b]`` reads it as a NumPy array. ``key`` is the dotted
    path of the state dict in a PyTorch file (found by default). Raises InputError for anything
    missing, broken or unsafe; nothing in a checkpoint is ever executed.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        from swavg.formats.folder import open_folder

        return open_folder(path, key=key, shared=shared)
    with open_input(path) as (fd, file):
        head = bytes(read_exactly(fd, file, 0, min(_HEAD, file.size)))
    if not head:
        raise InputError(path, "is empty (0 bytes)")
    # Its length may begin with the magic of another format: 640 with that of a pickle.
    if looks_like_safetensors(head):
        return open_safetensors(path, shared)
    # Only now: safetensors need none of the code for pickles.
    from swavg.formats.torch_legacy import (
        looks_like_torch_legacy,
        looks_like_torch_tar,
        open_torch_legacy,
    )
    from swavg.formats.torch_zip import looks_like_torch_zip, open_torch_zip

    if looks_like_torch_zip(head):
        return open_torch_zip(path, key=key)
    if looks_like_torch_legacy(head):
        return open_torch_legacy(path, key=key)
    if looks_like_torch_tar(head):
        raise InputError(
            path,
            "is a tar file; if PyTorch 0.1 wrote it, its format is not read any more",
            hint="Unpack it, or load and save it again with torch 1.x.",
        )
    for magic, problem, hint in _KNOWN_OTHERS:
        if head.startswith(magic):
            raise InputError(path, problem, hint=hint)
    if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise InputError(
            path, "is a web page, not a checkpoint", hint="Was it a download that failed?"
        )
    if not any(head):
        raise InputError(
            path, "starts with zeros: no checkpoint", hint="Was the copy or download cut short?"
        )
    if path.endswith(".safetensors"):
        return open_safetensors(path, shared)
    if path.endswith(".index.json"):
        raise InputError(path, "is only the index of a checkpoint", hint="Give its folder.")
    raise InputError(
        path,
        "is neither a safetensors nor a PyTorch file",
        hint="swavg reads .safetensors, .pt/.pth/.bin/.ckpt and folders of these.",
    )
