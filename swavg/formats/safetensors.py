"""safetensors: an own strict header reader, and a layout that equals the library's bytes."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

from swavg.dtypes import BY_SAFETENSORS
from swavg.errors import InputError, OutputError, RequestError
from swavg.formats.checkpoint import (
    Checkpoint,
    Columns,
    Extras,
    Form,
    Shared,
    TableBuilder,
    TensorTable,
)
from swavg.formats.hashes import is_stale, stale_notes
from swavg.formats.layout import FileLayout, Format, Layout, Specs, WriteRequest, losses
from swavg.formats.metrics import metrics_among
from swavg.storage.sources import LocalFile, Pool

HEADER_LIMIT = 100_000_000
"""Bytes of a header at most, as in the reference library."""

ENTRY_LIMIT = 300_000
"""Tensors at most: a header of empty tensors could hold millions, at 1 kB of memory each."""

DIMENSION_LIMIT = 64
"""Dimensions of a tensor at most, as in NumPy: the product of millions would take hours."""

NAME_LIMIT = 4096
"""Characters of a name at most."""

_HEADER_ALIGNMENT = 8

_BLANKS = b" \t\n\r"
"""What may stand before the object, as in any JSON."""


def looks_like_safetensors(head: bytes) -> bool:
    """True if the first bytes of a file are a header's length and the start of a JSON object."""
    # Any length below 4 GiB: one beyond the limit is refused as such when the file is opened.
    if len(head) < 9 or not 1 < int.from_bytes(head[:8], "little") < 2**32:
        return False
    return head[8:].lstrip(_BLANKS)[:1] in (b"{", b"")


def open_safetensors(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Read the header of ``path``. Raises InputError for anything that is not exactly valid.

    ``key`` means nothing here.
    """
    file, header, base = _read_header(path)
    shared = Shared() if shared is None else shared
    metadata, rest = _split(path, header)
    # Offsets count from the data on: equal however long the metadata is.
    identity = (hashlib.sha256(rest).digest(), file.size - base)
    columns = shared.columns.get(identity)
    if columns is None:
        entries = _parsed(path, rest)
        late = "__metadata__" in entries
        if late and rest is not header:
            raise InputError(path, "the key '__metadata__' is there twice")
        if late:
            metadata = _checked_metadata(path, entries.pop("__metadata__"))
        columns = _columns(path, entries, base, file.size, shared)
        # The next file of the same header would get no metadata if they were known by then.
        if not late:
            shared.columns[identity] = columns
    table = TensorTable(columns, base if columns.names else 0)
    extras = Extras(scalars=metadata, recipe=metadata.get("swavg"))
    return Checkpoint(path, "safetensors", (file,), table, metadata, extras=extras)


def recipe_in(path: str) -> str | None:
    """What swavg wrote of an average. InputError if the header has no such beginning."""
    return _split(path, _read_header(path)[1])[0].get("swavg")


def _read_header(path: str) -> tuple[LocalFile, bytearray, int]:
    """The file, its header without length and blanks before it, and the offset of the data."""
    file = LocalFile.find(path)
    with Pool() as pool:
        if file.size < 8:
            raise InputError(path, f"truncated: {file.size} bytes, less than a safetensors header")
        (length,) = struct.unpack("<Q", pool.read(file, 0, 8))
        if length > HEADER_LIMIT:
            raise InputError(
                path, f"its header claims {length:,} bytes; at most {HEADER_LIMIT:,} are allowed"
            )
        if 8 + length > file.size:
            raise InputError(
                path, f"truncated: its header has {length:,} bytes, the file {file.size:,}"
            )
        header = pool.read(file, 8, length)
    return file, header if header[:1] == b"{" else header.lstrip(_BLANKS), 8 + length


_HUGE = re.compile(rb"[0-9]{400}")
_METADATA = b'{"__metadata__":'


def _split(path: str, header: bytearray) -> tuple[dict[str, str], bytearray]:
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
    return _checked_metadata(path, metadata), bytearray(rest.encode())


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


def _parsed(path: str, header: bytearray) -> dict[str, object]:
    # To read and to show them takes time that is the square of their length.
    if _HUGE.search(header):
        raise InputError(path, "its header has a number of hundreds of digits")
    text = _decoded(path, header)
    with _as_json(path):
        entries: dict[str, object] = _decoder(path, header).decode(text)
    if b"\\u" in header and not all(map(_is_text, entries)):
        raise InputError(path, "its header has half a surrogate pair, which is no text")
    return entries


def _checked_metadata(path: str, metadata: object) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise InputError(path, "its __metadata__ does not map strings to strings")
    if not all(map(_is_text, (*metadata, *metadata.values()))):
        raise InputError(path, "its header has half a surrogate pair, which is no text")
    return metadata


def _columns(
    path: str, entries: Mapping[str, object], base: int, size: int, shared: Shared
) -> Columns:
    """The tensors in the order of their bytes, which they tile."""
    known: dict[tuple[object, str], tuple[Form, int]] = {}
    placed = sorted(
        ((*_entry(path, name, entry, known), name) for name, entry in entries.items()),
        key=itemgetter(0, 1),
    )
    builder = TableBuilder()
    position = 0
    for begin, end, form, name in placed:
        if begin != position:
            kind = "overlaps the tensor before it" if begin < position else "leaves a hole"
            where = f"(at byte {base + begin}, not {base + position})"
            raise InputError(path, f"{_short(name)} {kind} {where}")
        builder.add(name, form, base + begin)
        position = end
    end = base + position
    if end > size:
        raise InputError(path, f"truncated: its tensors need {end:,} bytes, the file has {size:,}")
    if end < size:
        raise InputError(path, f"{size - end:,} bytes follow its last tensor")
    return builder.build(shared).columns


def unique(path: str, pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
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


def _entry(
    path: str, name: str, entry: object, known: dict[tuple[object, str], tuple[Form, int]]
) -> tuple[int, int, Form]:
    """Where a tensor's bytes begin and end, behind the header, and its form. ``known`` keeps the
    forms of dtypes and shapes that were checked, with their sizes in bits."""
    if len(name) > NAME_LIMIT:
        raise InputError(path, f"{_short(name)} is a name of more than {NAME_LIMIT:,} characters")
    if type(entry) is not dict or entry.keys() != _KEYS:
        shown = _short(name)
        raise InputError(path, f"{shown} is not described by dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    # As text, in which true and 1.0 are not 1.
    key = code if type(code) is str else "", repr(shape)
    found = known.get(key)
    if found is None:
        found = known[key] = _checked_form(path, _short(name), code, shape)
    form, bits = found
    if type(offsets) is not list or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise InputError(path, f"{_short(name)} has the invalid data_offsets {_short(offsets)}")
    begin, end = offsets
    if bits % 8 or end - begin != bits // 8:
        raise InputError(
            path,
            f"{_short(name)} is {shape} of {form[0]}, {bits / 8:,.10g} bytes,"
            f" but its data_offsets span {end - begin:,}",
        )
    return begin, end, form


_KEYS = {"dtype", "shape", "data_offsets"}


def _checked_form(path: str, shown: str, code: object, shape: object) -> tuple[Form, int]:
    """The form of a dtype and a shape, and its size in bits."""
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
    return (dtype, tuple(shape), None), math.prod(shape) * dtype.bits


@dataclass(frozen=True, eq=False)
class SafetensorsLayout(FileLayout):
    """One safetensors file: a header, then the tensors without gaps."""

    metadata: str = "{}"

    def fixed(self) -> Iterator[tuple[int, bytes]]:
        header = header_of(self.specs, self.tensors, self.metadata)
        yield 0, struct.pack("<Q", len(header)) + header

    def verify(self, path: str) -> None:
        """Open the finished file with the safetensors library."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                names = set(file.keys())
        except (OSError, SafetensorError) as error:
            raise OutputError(path, f"the safetensors library rejects it: {error}") from None
        if names != set(map(self.specs.names.__getitem__, self.tensors)):
            raise OutputError(path, "the safetensors library reads other tensors than were written")


def header_of(specs: Specs, order: Sequence[int], metadata: str) -> bytes:
    """The header's JSON of the tensors in this order, as compact as the library writes it."""
    forms = [
        (json.dumps(dtype.safetensors), json.dumps(list(shape), separators=(",", ":")))
        for dtype, shape in specs.forms
    ]
    sizes = specs.sizes
    parts = [f'"__metadata__":{metadata}'] if metadata != "{}" else []
    position = 0
    for number in order:
        end = position + sizes[number]
        code, shape = forms[specs.form[number]]
        name = json.dumps(specs.names[number], ensure_ascii=False)
        parts.append(f'{name}:{{"dtype":{code},"shape":{shape},"data_offsets":[{position},{end}]}}')
        position = end
    text = ("{" + ",".join(parts) + "}").encode()
    return text + b" " * (-len(text) % _HEADER_ALIGNMENT)


def lay_out(request: WriteRequest) -> Layout:
    """Plan a file: tensors by dtype rank, largest first, then by name, as the library does.

    Raises RequestError for a dtype that the format lacks.
    """
    lost = losses(request)
    notes = (f"safetensors holds tensors only: {lost} left out",) if lost else ()
    return Layout((plan_file(request, request.apart),), notes=(*notes, *stale_notes(request)))


# Entries that swavg.training writes of one snapshot: they do not hold for what is made of it.
_OF_ONE = ("metrics", "snapshots", "ema_state")


def metadata_of(request: WriteRequest) -> dict[str, str]:
    """The strings of the header: the template's, and how the tensors were made."""
    found = dict(request.template.metadata)
    if not request.copies:
        gone = [name for name in found if name in _OF_ONE or is_stale(name)]
        for name in (*gone, *metrics_among(found)):
            del found[name]
    # transformers refuses files that do not say which framework wrote them.
    found.setdefault("format", "pt")
    if request.recipe:
        found["swavg"] = request.recipe
    return found


def plan_file(request: WriteRequest, numbers: Sequence[int], name: str = "") -> SafetensorsLayout:
    """One file of these tensors. RequestError for a dtype or a name that the format lacks."""
    return plan_specs(request.specs, numbers, metadata_of(request), name)


def plan_specs(
    specs: Specs, numbers: Sequence[int], metadata: Mapping[str, str], name: str = ""
) -> SafetensorsLayout:
    """:func:`plan_file` with these very strings in the header."""
    ranks = [-dtype.safetensors_rank for dtype, _ in specs.forms]
    order = sorted(numbers, key=lambda n: (ranks[specs.form[n]], specs.names[n].encode()))
    for number in order:
        dtype = specs.forms[specs.form[number]][0]
        if dtype.safetensors is None:
            raise RequestError(
                f"safetensors has no dtype for {dtype}, which '{specs.names[number]}' is.",
                hint="Write a .pt file instead, or leave it out with exclude= and"
                " drop_excluded=True.",
            )
        if specs.names[number] == "__metadata__":
            raise RequestError("safetensors cannot hold a tensor named '__metadata__'.")
    strings = json.dumps(dict(metadata), ensure_ascii=False, separators=(",", ":"))
    header = len(header_of(specs, order, strings))
    if header > HEADER_LIMIT:
        raise RequestError(
            f"The header would have {header:,} bytes; safetensors allows {HEADER_LIMIT:,}.",
            hint="Write a folder of shards: max_shard_size=5GB.",
        )
    offsets, position, sizes = array("q"), 8 + header, specs.sizes
    for number in order:
        offsets.append(position)
        position += sizes[number]
    return SafetensorsLayout(name, position, specs, array("I", order), offsets, metadata=strings)


FORMAT = Format(
    "safetensors", (".safetensors",), looks_like_safetensors, open_safetensors, lay_out, plan_file,
    recipe_in,
)  # fmt: skip
