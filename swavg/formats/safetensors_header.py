"""The header of a safetensors file, read as strictly as the library reads it, or more."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from swavg.dtypes import BY_SAFETENSORS
from swavg.errors import InputError
from swavg.formats.strict_json import is_text, short, unique
from swavg.formats.tensors import Form
from swavg.storage.paths import reading
from swavg.storage.sources import Source

HEADER_LIMIT = 100_000_000
"""Bytes of a header at most, as in the reference library."""

ENTRY_LIMIT = 300_000
"""Tensors at most: a header of empty tensors could hold millions, at 1 kB of memory each."""

DIMENSION_LIMIT = 64
"""Dimensions of a tensor at most, as in NumPy: the product of millions would take hours."""

NAME_LIMIT = 4096
"""Characters of a name at most."""

_BLANKS = b" \t\n\r"
"""What may stand before the object, as in any JSON."""


def looks_like_safetensors(head: bytes) -> bool:
    """True if the first bytes of a file are a header's length and the start of a JSON object."""
    # Any length below 4 GiB: one beyond the limit is refused as such when the file is opened.
    if len(head) < 9 or not 1 < int.from_bytes(head[:8], "little") < 2**32:
        return False
    return head[8:].lstrip(_BLANKS)[:1] in (b"{", b"")


def read_header(path: str) -> tuple[Source, bytearray, int]:
    """The file, its header without length and blanks before it, and the offset of the data."""
    with reading(path) as (file, read):
        if file.size < 8:
            raise InputError(path, f"truncated: {file.size} bytes, less than a safetensors header")
        (length,) = struct.unpack("<Q", read(0, 8))
        if length > HEADER_LIMIT:
            raise InputError(
                path, f"its header claims {length:,} bytes; at most {HEADER_LIMIT:,} are allowed"
            )
        if 8 + length > file.size:
            raise InputError(
                path, f"truncated: its header has {length:,} bytes, the file {file.size:,}"
            )
        header = read(8, length)
    return file, header if header[:1] == b"{" else header.lstrip(_BLANKS), 8 + length


_HUGE = re.compile(rb"[0-9]{400}")
_METADATA = b'{"__metadata__":'


def split_metadata(path: str, header: bytearray) -> tuple[dict[str, str], bytearray]:
    """The metadata where it comes first, as all writers have it; and the header without it."""
    _check_size(path, header)
    if not header.startswith(_METADATA + b"{"):
        return {}, header
    text = _decoded(path, header)
    with _as_json(path):
        metadata, end = _decoder(path, header).raw_decode(text, len(_METADATA))
    if not text.startswith((',"', "}"), end):
        return {}, header
    rest = "{" + text[end:].removeprefix(",")
    return checked_metadata(path, metadata), bytearray(rest.encode())


def _check_size(path: str, header: bytearray) -> None:
    if header[:1] != b"{":
        raise InputError(path, "its safetensors header does not start with '{'")
    # Every object, list and element costs memory many times its length in the text.
    if (
        header.count(b"{") > ENTRY_LIMIT + 2
        or header.count(b"[") > 2 * ENTRY_LIMIT
        or header.count(b",") > 6 * ENTRY_LIMIT
        or header.count(b":") > 9 * ENTRY_LIMIT // 2
        or header.count(b'"') > 12 * ENTRY_LIMIT
        or len(header) * _width(header) > 2 * HEADER_LIMIT
    ):
        raise InputError(
            path, f"its header is too large: {ENTRY_LIMIT:,} tensors at most are allowed"
        )


def _decoded(path: str, header: bytearray) -> str:
    # Left to itself, json.loads would take UTF-16 and UTF-32 too.
    with _as_json(path):
        return header.decode("utf-8")


@contextmanager
def _as_json(path: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"its safetensors header is not valid JSON ({error})") from None


def _decoder(path: str, header: bytearray) -> json.JSONDecoder:
    # For the reference library -0 is a float, and no offset or extent; Python reads the integer 0.
    parse = _not_minus_zero if b"-0" in header else None
    return json.JSONDecoder(object_pairs_hook=partial(unique, path), parse_int=parse)


def _not_minus_zero(digits: str) -> int:
    if digits == "-0":
        raise ValueError("-0 is no count")
    return int(digits)


def parsed_entries(path: str, header: bytearray) -> dict[str, object]:
    """What the header says of each tensor, not yet checked."""
    # To read and to show them takes time that is the square of their length.
    if _HUGE.search(header):
        raise InputError(path, "its header has a number of hundreds of digits")
    text = _decoded(path, header)
    with _as_json(path):
        entries: dict[str, object] = _decoder(path, header).decode(text)
    if b"\\u" in header and not all(map(is_text, entries)):
        raise InputError(path, "its header has half a surrogate pair, which is no text")
    return entries


def checked_metadata(path: str, metadata: object) -> dict[str, str]:
    """The value of ``__metadata__``, which maps texts to texts."""
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise InputError(path, "its __metadata__ does not map strings to strings")
    if not all(map(is_text, (*metadata, *metadata.values()))):
        raise InputError(path, "its header has half a surrogate pair, which is no text")
    return metadata


def _width(header: bytearray) -> int:
    """Bytes that Python takes for each character of the decoded header."""
    if re.search(rb"[\xf0-\xff]", header):
        return 4
    return 2 if re.search(rb"[\xc4-\xff]", header) else 1


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def placed_entry(
    path: str, name: str, entry: object, known: dict[tuple[object, str], tuple[Form, int]]
) -> tuple[int, int, Form]:
    """Where a tensor's bytes begin and end, behind the header, and its form. ``known`` keeps the
    forms of dtypes and shapes that were checked, with their sizes in bits."""
    if len(name) > NAME_LIMIT:
        raise InputError(path, f"{short(name)} is a name of more than {NAME_LIMIT:,} characters")
    if type(entry) is not dict or entry.keys() != _KEYS:
        shown = short(name)
        raise InputError(path, f"{shown} is not described by dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    # As text, in which true and 1.0 are not 1.
    key = code if type(code) is str else "", repr(shape)
    found = known.get(key)
    if found is None:
        found = known[key] = _checked_form(path, short(name), code, shape)
    form, bits = found
    if type(offsets) is not list or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise InputError(path, f"{short(name)} has the invalid data_offsets {short(offsets)}")
    begin, end = offsets
    if bits % 8 or end - begin != bits // 8:
        raise InputError(
            path,
            f"{short(name)} is {shape} of {form[0]}, {bits / 8:,.10g} bytes,"
            f" but its data_offsets span {end - begin:,}",
        )
    return begin, end, form


_KEYS = {"dtype", "shape", "data_offsets"}


def _checked_form(path: str, shown: str, code: object, shape: object) -> tuple[Form, int]:
    """The form of a dtype and a shape, and its size in bits."""
    dtype = BY_SAFETENSORS.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise InputError(path, f"{shown} has the unknown dtype {short(code)}")
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise InputError(path, f"{shown} has the invalid shape {short(shape)}")
    if len(shape) > DIMENSION_LIMIT:
        raise InputError(
            path, f"{shown} has {len(shape):,} dimensions; {DIMENSION_LIMIT} at most are allowed"
        )
    if math.prod(filter(None, shape)) >= 2**63:
        raise InputError(path, f"{shown} has the impossible shape {short(shape)}")
    return (dtype, tuple(shape), None), math.prod(shape) * dtype.bits
