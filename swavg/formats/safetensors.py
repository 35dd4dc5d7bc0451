"""safetensors: an own strict header reader, and a layout that equals the library's bytes."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swavg.dtypes import BY_SAFETENSORS
from swavg.errors import InputError, OutputError, RequestError
from swavg.formats.base import Buffer, Checkpoint, Extent, Layout, Task, Tensor, TensorSpec
from swavg.formats.files import open_input, read_exactly

HEADER_LIMIT = 100_000_000
"""Bytes of a header at most, as in the reference library."""

ENTRY_LIMIT = 300_000
"""Tensors at most: a header of empty tensors could hold millions, at 1 kB of memory each."""

DIMENSION_LIMIT = 64
"""Dimensions of a tensor at most, as in NumPy: the product of millions would take hours."""

_RANK_ALIGNMENT = 8


class SafetensorsCheckpoint(Checkpoint):
    """An opened safetensors file."""

    format = "safetensors"


def looks_like_safetensors(head: bytes) -> bool:
    """True if the first bytes of a file are a header's length and the start of a JSON object."""
    # Any length below 4 GiB: one beyond the limit is refused as such when the file is opened.
    return len(head) >= 9 and head[8:9] == b"{" and 1 < int.from_bytes(head[:8], "little") < 2**32


Shared = dict[tuple[bytes, int], tuple[dict[str, Tensor], dict[str, str]]]
"""Parsed headers by digest: checkpoints of one run have equal headers, stored once."""


def open_safetensors(path: str, shared: Shared | None = None) -> SafetensorsCheckpoint:
    """Read the header of ``path``. Raises InputError for anything that is not exactly valid.

    ``shared`` remembers parsed headers, so that equal ones cost memory once.
    """
    with open_input(path) as (fd, file):
        if file.size < 8:
            raise InputError(path, f"truncated: {file.size} bytes, less than a safetensors header")
        (length,) = struct.unpack("<Q", read_exactly(fd, file, 0, 8))
        if length > HEADER_LIMIT:
            raise InputError(
                path, f"its header claims {length:,} bytes; at most {HEADER_LIMIT:,} are allowed"
            )
        if 8 + length > file.size:
            raise InputError(
                path, f"truncated: its header has {length:,} bytes, the file {file.size:,}"
            )
        header = read_exactly(fd, file, 8, length)
    identity = (hashlib.sha256(header).digest(), file.size)
    parsed = None if shared is None else shared.get(identity)
    if parsed is None:
        parsed = _parse(path, header, file.size - 8 - length)
        if shared is not None:
            shared[identity] = parsed
    tensors, metadata = parsed
    return SafetensorsCheckpoint(path, (file,), tensors, metadata)


def _parse(
    path: str, header: bytearray, data_size: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    if header[:1] != b"{":
        raise InputError(path, "its safetensors header does not start with '{'")
    # Every object, list and element costs memory many times its length in the text.
    if (
        header.count(b"{") > ENTRY_LIMIT + 2
        or header.count(b"[") > 2 * ENTRY_LIMIT
        or header.count(b",") > 6 * ENTRY_LIMIT
        or len(header) * _width(header) > 2 * HEADER_LIMIT
    ):
        raise InputError(
            path, f"its header is too large: {ENTRY_LIMIT:,} tensors at most are allowed"
        )
    try:
        # Left to itself, json.loads would take UTF-16 and UTF-32 too.
        text = header.decode("utf-8")
        entries = json.loads(text, object_pairs_hook=lambda pairs: unique(path, pairs))
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"its safetensors header is not valid JSON ({error})") from None
    metadata = entries.pop("__metadata__", None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise InputError(path, "its __metadata__ does not map strings to strings")
    if b"\\u" in header and not all(map(_is_text, (*entries, *metadata, *metadata.values()))):
        raise InputError(path, "its header has half a surrogate pair, which is no text")
    found = [_entry(path, name, entry, 8 + len(header)) for name, entry in entries.items()]
    found.sort(key=lambda tensor: (tensor.extent.offset, tensor.extent.nbytes))
    position = 8 + len(header)
    for tensor in found:
        name, extent = tensor.spec.name, tensor.extent
        if extent.offset != position:
            kind = "overlaps the tensor before it" if extent.offset < position else "leaves a hole"
            where = f"(at byte {extent.offset}, not {position})"
            raise InputError(path, f"{_short(name)} {kind} {where}")
        position += extent.nbytes
    end = 8 + len(header) + data_size
    if position > end:
        raise InputError(
            path, f"truncated: its tensors need {position:,} bytes, the file has {end:,}"
        )
    if position < end:
        raise InputError(path, f"{end - position:,} bytes follow its last tensor")
    return {tensor.spec.name: tensor for tensor in found}, metadata


def unique(path: str, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; InputError if a key is there twice (for ``object_pairs_hook``)."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InputError(path, f"the key {_short(key)} is there twice")
            seen.add(key)
    return found


def _width(header: bytearray) -> int:
    """Bytes that Python takes for each character of the decoded header."""
    if re.search(rb"[\xf0-\xff]", header):
        return 4
    return 2 if re.search(rb"[\xc4-\xff]", header) else 1


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _short(value: object) -> str:
    """``value`` as a message shows it: a hostile one could be as long as the header."""
    text = f"'{value}'" if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:180]}... ({len(text):,} characters)"


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _entry(path: str, name: str, entry: object, base: int) -> Tensor:
    shown = _short(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise InputError(path, f"{shown} is not described by dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = BY_SAFETENSORS.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise InputError(path, f"{shown} has the unknown dtype {_short(code)}")
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise InputError(path, f"{shown} has the invalid shape {_short(shape)}")
    if len(shape) > DIMENSION_LIMIT:
        raise InputError(
            path, f"{shown} has {len(shape):,} dimensions; {DIMENSION_LIMIT} at most are allowed"
        )
    if math.prod(filter(None, shape)) >= 2**63:
        raise InputError(path, f"{shown} has the impossible shape {_short(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise InputError(path, f"{shown} has the invalid data_offsets {_short(offsets)}")
    spec = TensorSpec(name, dtype, tuple(shape))
    begin, end = offsets
    bits = spec.numel * dtype.bits
    if bits % 8 or end - begin != bits // 8:
        raise InputError(
            path,
            f"{shown} is {shape} of {dtype}, {bits / 8:,.10g} bytes,"
            f" but its data_offsets span {end - begin:,}",
        )
    return Tensor(spec, Extent(0, base + begin, end - begin))


@dataclass(frozen=True)
class SafetensorsLayout(Layout):
    """One safetensors file: ``header`` (its length included), then the tensors without gaps."""

    header: bytes = b""
    metadata: Mapping[str, str] = field(default_factory=dict)

    format = "safetensors"
    joined = True

    def frame(self, chunks: Iterator[memoryview]) -> Iterator[Buffer]:
        yield self.header
        yield from chunks

    def verify(self, path: str) -> None:
        """Open the finished file with the safetensors library."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                names = set(file.keys())
        except (OSError, SafetensorError) as error:
            raise OutputError(path, f"the safetensors library rejects it: {error}") from None
        if names != {task.name for task in self.tasks}:
            raise OutputError(path, "the safetensors library reads other tensors than were written")


def lay_out_safetensors(
    tasks: Sequence[Task], metadata: Mapping[str, str], name: str = ""
) -> SafetensorsLayout:
    """Plan a file: tensors by dtype rank, largest first, then by name, as the library does.

    Each task's name becomes a tensor. Raises RequestError for a dtype that the format lacks.
    """
    ordered = sorted(tasks, key=lambda task: (-task.dtype.safetensors_rank, task.name.encode()))
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for task in ordered:
        if task.dtype.safetensors is None:
            raise RequestError(
                f"safetensors has no dtype for {task.dtype}, which '{task.name}' is.",
                hint="Write a .pt file instead, or leave it out with --exclude and"
                " --drop-excluded.",
            )
        if task.name == "__metadata__":
            raise RequestError("safetensors cannot hold a tensor named '__metadata__'.")
        end = position + task.nbytes
        entries[task.name] = {
            "dtype": task.dtype.safetensors,
            "shape": list(task.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _RANK_ALIGNMENT)
    if len(text) > HEADER_LIMIT:
        raise RequestError(
            f"The header would have {len(text):,} bytes; safetensors allows {HEADER_LIMIT:,}.",
            hint="Write a folder of shards: --max-shard-size 5GB.",
        )
    header = struct.pack("<Q", len(text)) + text
    return SafetensorsLayout(name, len(header) + position, tuple(ordered), header, dict(metadata))
