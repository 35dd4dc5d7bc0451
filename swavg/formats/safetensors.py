"""safetensors: read with an own strict reader, and laid out to the library's very bytes."""

from __future__ import annotations

import hashlib
import json
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from swavg.errors import InputError, OutputError, RequestError
from swavg.formats.checkpoint import Checkpoint, Extras
from swavg.formats.hashes import is_stale, stale_notes
from swavg.formats.layout import FileLayout, Format, Layout, Specs, WriteRequest, losses
from swavg.formats.metrics import metrics_among
from swavg.formats.safetensors_header import (
    HEADER_LIMIT,
    checked_metadata,
    looks_like_safetensors,
    parsed_entries,
    placed_entry,
    read_header,
    split_metadata,
)
from swavg.formats.strict_json import short
from swavg.formats.tensors import Columns, Form, Shared, TableBuilder, TensorTable

_HEADER_ALIGNMENT = 8


def open_safetensors(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Read the header of ``path``. Raises InputError for anything that is not exactly valid.

    ``key`` means nothing here.
    """
    file, header, base = read_header(path)
    shared = Shared() if shared is None else shared
    metadata, rest = split_metadata(path, header)
    # Offsets count from the data on: equal however long the metadata is.
    identity = (hashlib.sha256(rest).digest(), file.size - base)
    columns = shared.columns.get(identity)
    if columns is None:
        entries = parsed_entries(path, rest)
        late = "__metadata__" in entries
        if late and rest is not header:
            raise InputError(path, "the key '__metadata__' is there twice")
        if late:
            metadata = checked_metadata(path, entries.pop("__metadata__"))
        columns = _columns(path, entries, base, file.size, shared)
        # The next file of the same header would get no metadata if they were known by then.
        if not late:
            shared.columns[identity] = columns
    table = TensorTable(columns, base if columns.names else 0)
    extras = Extras(scalars=metadata, recipe=metadata.get("swavg"))
    return Checkpoint(path, "safetensors", (file,), table, metadata, extras=extras)


def recipe_in(path: str) -> str | None:
    """What swavg wrote of an average. InputError if the header has no such beginning."""
    return split_metadata(path, read_header(path)[1])[0].get("swavg")


def _columns(
    path: str, entries: Mapping[str, object], base: int, size: int, shared: Shared
) -> Columns:
    """The tensors in the order of their bytes, which they tile."""
    known: dict[tuple[object, str], tuple[Form, int]] = {}
    placed = sorted(
        ((*placed_entry(path, name, entry, known), name) for name, entry in entries.items()),
        key=itemgetter(0, 1),
    )
    builder = TableBuilder()
    position = 0
    for begin, end, form, name in placed:
        if begin != position:
            kind = "overlaps the tensor before it" if begin < position else "leaves a hole"
            where = f"(at byte {base + begin}, not {base + position})"
            raise InputError(path, f"{short(name)} {kind} {where}")
        builder.add(name, form, base + begin)
        position = end
    end = base + position
    if end > size:
        raise InputError(path, f"truncated: its tensors need {end:,} bytes, the file has {size:,}")
    if end < size:
        raise InputError(path, f"{size - end:,} bytes follow its last tensor")
    return builder.build(shared).columns


@dataclass(frozen=True, eq=False, repr=False)
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
    return Layout(
        (plan_file(request, request.without_ties),), notes=(*notes, *stale_notes(request))
    )


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
