"""The formats of single files, and which of them a file has: told by its bytes, not its suffix."""

from __future__ import annotations

from swavg.errors import InputError
from swavg.formats import safetensors, torch
from swavg.formats.checkpoint import Checkpoint, Shared
from swavg.formats.layout import Format
from swavg.storage.sources import read_file

# A safetensors length may begin with the magic of another format: 640 with that of a pickle.
FILES: dict[str, Format] = {
    row.name: row for row in (safetensors.FORMAT, torch.FORMAT, torch.LEGACY)
}

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


def open_file(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open a file of any format. Raises InputError; what it is otherwise, if that can be told."""
    head = read_file(path, _HEAD)
    if not head:
        raise InputError(path, "is empty (0 bytes)")
    for row in FILES.values():
        if row.recognises(head):
            return row.open(path, key, shared)
    raise _unknown(path, head)


def recipe_in(path: str) -> str | None:
    """What swavg wrote of an average into a file; None if it is none. InputError."""
    head = read_file(path, _HEAD)
    row = next((row for row in FILES.values() if row.recognises(head)), None)
    return None if row is None else row.recipe_in(path)


def _unknown(path: str, head: bytes) -> InputError:
    if head[257:262] == b"ustar":
        return InputError(
            path,
            "is a tar file; if PyTorch 0.1 wrote it, its format is not read any more",
            hint="Unpack it, or load and save it again with torch 1.x.",
        )
    for magic, problem, hint in _KNOWN_OTHERS:
        if head.startswith(magic):
            return InputError(path, problem, hint=hint)
    if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return InputError(
            path, "is a web page, not a checkpoint", hint="Was it a download that failed?"
        )
    if not any(head):
        return InputError(
            path, "starts with zeros: no checkpoint", hint="Was the copy or download cut short?"
        )
    if path.endswith(".index.json"):
        return InputError(path, "is only the index of a checkpoint", hint="Give its folder.")
    if path.endswith(".safetensors"):
        # It says itself what is wrong.
        safetensors.FORMAT.open(path)
    return InputError(
        path,
        "is neither a safetensors nor a PyTorch file",
        hint="swavg reads .safetensors, .pt/.pth/.bin/.ckpt and folders of these.",
    )
