"""Archives and compressed files, with the commands that unpack them. Nothing is unpacked here: of
a compressed file the beginning is looked at, of a tar the names."""

from __future__ import annotations

import bz2
import lzma
import os
import re
import shlex
import zlib
from collections.abc import Callable, Iterator, Sequence

from swavg.errors import InputError, some
from swavg.formats.commands import output_for
from swavg.formats.part_names import WEIGHTS
from swavg.storage.paths import read_file, reading

_LOOK = 1 << 20
_MOST_MEMBERS = 1000
_BLOCK = 512

Read = Callable[[int, int], bytes | bytearray]
"""Bytes of a file from an offset on, fewer where it ends."""

_COMPRESSED: dict[bytes, tuple[str, Callable[[bytes], bytes] | None]] = {
    b"\x1f\x8b": ("gzip", lambda data: zlib.decompressobj(31).decompress(data, _LOOK)),
    b"BZh": ("bzip2", lambda data: bz2.BZ2Decompressor().decompress(data, _LOOK)),
    b"\xfd7zXZ\x00": (
        "xz",
        lambda data: lzma.LZMADecompressor(memlimit=64 << 20).decompress(data, _LOOK),
    ),
    b"\x28\xb5\x2f\xfd": ("zstd", None),
    b"\x04\x22\x4d\x18": ("lz4", None),
}
"""By the first bytes: the program's name, and what gives the beginning of the content."""


def unpacking(path: str, head: bytes) -> InputError | None:
    """What the archive or compressed file at ``path`` is, which begins with ``head``, and how it is
    unpacked; None if it is neither."""
    magic = next(filter(head.startswith, _COMPRESSED), None)
    if magic is None:
        with reading(path) as (file, read):
            names = list(_members(lambda at, size: read(at, max(0, min(size, file.size - at)))))
        return _tar(path, names, None) if names else None
    program, begin = _COMPRESSED[magic]
    try:
        content = begin(read_file(path, _LOOK)) if begin is not None else b""
    except (zlib.error, lzma.LZMAError, OSError, EOFError):
        content = b""
    names = list(_members(lambda at, size: content[at : at + size]))
    if names:
        return _tar(path, names, program)
    hint = f"Decompress it first:\n{program} -dc {shlex.quote(path)} > {output_for(path)}"
    return InputError(path, f"is compressed with {program}", hint=hint)


def _members(read: Read) -> Iterator[str]:
    """The names of the first files in a tar, empty if they are not fit to be shown in a command;
    none if it is no tar."""
    at = 0
    for _ in range(_MOST_MEMBERS):
        block = read(at, _BLOCK)
        size = block[124:136]
        if block[257:262] != b"ustar" or not re.fullmatch(rb"[0-7]*[\0 ]*|\x80.*", size, re.DOTALL):
            return
        if block[156:157] in b"0\0":
            name = block[:100].rstrip(b"\0").decode(errors="replace").removeprefix("./")
            yield name if name.isprintable() and ".." not in name.split("/") else ""
        wide = size[:1] == b"\x80"
        nbytes = int.from_bytes(size[1:], "big") if wide else int(size.rstrip(b"\0 ") or b"0", 8)
        at += _BLOCK + -(-nbytes // _BLOCK) * _BLOCK


def _tar(path: str, names: Sequence[str], program: str | None) -> InputError:
    """A tar that holds files of these ``names``, and perhaps more."""
    if {"storages", "tensors"} & {*names}:
        problem = "is a tar file of PyTorch 0.1, whose format is not read any more"
        return InputError(path, problem, hint="Load and save it again with torch 1.x.")
    nemo = path.endswith(".nemo") or "model_weights.ckpt" in names
    kind = "a NeMo archive (a tar" if nemo else "an archive (a tar"
    kind += f", compressed with {program})" if program else ")"
    folder, flags = output_for(path), "-czf" if program == "gzip" else "-cf"
    unpack = f"mkdir {folder} && tar -xf {shlex.quote(path)} -C {folder}"
    weights = [name for name in names if name.endswith(WEIGHTS)]
    if nemo and not weights:
        # They lie further behind.
        weights = ["model_weights.ckpt"]
    if inner := next((os.path.dirname(name) for name in names if name.endswith(".distcp")), None):
        place = os.path.join(folder, inner)
        hint = f"Unpack each, and average the distributed checkpoints ({place}):\n{unpack}"
    elif any("model_weights/" in name for name in names):
        hint = f"Unpack each; then the distributed checkpoint in it has to be converted:\n{unpack}"
    elif len(weights) == 1:
        base, suffix = os.path.basename(weights[0]), os.path.splitext(weights[0])[1]
        hint = (
            f"Unpack each, average their {base} with -o averaged{suffix}, and pack again:\n"
            f"{unpack}\n"
            f"cp averaged{suffix} {folder}/{shlex.quote(weights[0])}"
            f" && tar {flags} averaged{shlex.quote(os.path.splitext(path)[1])} -C {folder} ."
        )
    elif weights:
        hint = f"Unpack each, and average part with part ({some(weights, 3)}):\n{unpack}"
    else:
        hint = f"Unpack it, and give what is in it:\n{unpack}"
    return InputError(path, f"is {kind}, not a checkpoint", hint=hint)
