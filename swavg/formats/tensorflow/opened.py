"""Opening a bundle: the tensors of its model, and what else it holds."""

from __future__ import annotations

import hashlib
import math
import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from swavg.errors import InputError, NoWeightsError, quoted
from swavg.formats.checkpoint import Checkpoint, Extras, Scalar
from swavg.formats.records import Record
from swavg.formats.tensorflow import prefix_at, prefixes_in, recipe_in
from swavg.formats.tensorflow.bundle import NUMBERS, STRING, Bundle, Entry, read_bundle
from swavg.formats.tensorflow.graph import GRAPH_KEY, GRAPH_LIMIT, model_keys, weights_by_name
from swavg.formats.tensorflow.proto import varint
from swavg.formats.tensorflow.slices import NUL, slices_of
from swavg.formats.tensors import Box, Shared, TableBuilder, Tensor, TensorSpec
from swavg.storage.crc import crc_function
from swavg.storage.paths import find_part, is_folder
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
"""What the key of a variable of an object ends with."""

AVERAGES = "/ExponentialMovingAverage"
"""What TensorFlow's moving averages are called behind the name of their variable."""
_COUNTS = {
    b"global_step": "global_step",
    b"step" + VALUE.encode(): "step",
    b"global_step" + VALUE.encode(): "global_step",
    b"optimizer/iter" + VALUE.encode(): "iter",
    b"optimizer/_iterations" + VALUE.encode(): "iter",
}
"""Keys of what counts the steps of training, and the name of the count."""
_INTEGERS = (NUMBERS["int32"], NUMBERS["int64"])
_RANDOM = re.compile(rb"(?:.*/)?_state_var" + VALUE.encode())
"""The state of a random generator, in integers."""


@dataclass(frozen=True, slots=True)
class Template:
    """What a writer needs to keep all else: the prefix, and the names of the model's variables."""

    prefix: str
    names: Sequence[str]


@dataclass(frozen=True, eq=False)
class Records:
    """The checksums of tensors, or of slices of them, in columns: ``number`` is that of the name in
    the table."""

    names: Sequence[str]
    number: array[int]
    offset: array[int]
    size: array[int]
    crc: array[int]

    def __iter__(self) -> Iterator[Record]:
        for number, offset, size, crc in zip(
            self.number, self.offset, self.size, self.crc, strict=True
        ):
            yield Record(self.names[number], offset, size, crc)

    def add(self, number: int, entry: Entry) -> None:
        self.number.append(number)
        self.offset.append(entry.offset)
        self.size.append(entry.size)
        self.crc.append(entry.crc)


def open_bundle(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open the checkpoint that ``path`` stands for. InputError if it is damaged.

    ``key`` means nothing here.
    """
    prefix = prefix_at(path)
    if prefix is None:
        raise InputError(path, "holds no TensorFlow checkpoint")
    shared = Shared() if shared is None else shared
    index, bundle = read_bundle(prefix)
    shards = map(bundle.data_file, range(bundle.shards))
    files = tuple(find_part(shard, path) for shard in shards)
    try:
        _check_places(bundle, files)
        model = _model(bundle, files, shared)
        builder, places = _table(bundle, model)
        others = _others(bundle, model, shared)
        scalars = _scalars(bundle, files)
    except ValueError as error:
        raise InputError(f"{prefix}.index", f"is damaged: {error}") from None
    table = builder.build(shared)
    names = table.columns.names
    if not names:
        raise NoWeightsError(
            path,
            "is a TensorFlow checkpoint without variables of a model",
            hint="Layers in lists or dicts of a Keras model are saved there only with the optimizer"
            " that has trained them; its save_weights() keeps all.",
        )
    records = [Records(names, array("I"), array("q"), array("q"), array("I")) for _ in files]
    for number, entries in enumerate(places):
        for entry in entries:
            records[entry.shard].add(number, entry)
    extras = Extras(
        scalars=scalars,
        records=dict(enumerate(records)),
        checksum="crc32c",
        always_checked=True,
        recipe=recipe_in(path),
        others=others,
        template=Template(prefix, names),
    )
    notes = tuple(_notes(path, prefix, len(names), others))
    return Checkpoint(path, "tensorflow", (*files, index), table, notes=notes, extras=extras)


def _notes(path: str, prefix: str, count: int, others: Sequence[str]) -> Iterator[str]:
    if is_folder(path) and len(several := prefixes_in(path)) > 1:
        latest = os.path.basename(prefix)
        yield f"of {len(several)} checkpoints in the folder {latest} is taken, the latest"
    if others:
        yield f"taken are the model's: {count} of {count + len(others)} variables"
    averages = [name for name in others if name.endswith(AVERAGES)]
    if averages:
        yield f"averages that were taken in training stay as they are: {quoted(averages, 3)}"


def _others(bundle: Bundle, model: frozenset[bytes], shared: Shared) -> tuple[str, ...]:
    """The names of what is there besides the model's variables; equal ones are kept once."""
    keys = (key for key in bundle.entries if key not in model and not key.startswith(NUL))
    names = tuple(_text(key).removesuffix(VALUE) for key in keys if key != GRAPH_KEY)
    return shared.once(tuple, names, lambda: names)


def _text(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise ValueError("a key is no text") from None


def _check_places(bundle: Bundle, files: Sequence[Source]) -> None:
    """Raise InputError for tensors beyond the end of their file; ValueError for those that
    overlap, or whose size is not that of their dtype and shape."""
    ends = [0] * len(files)
    for entry in sorted(bundle.entries.values(), key=lambda each: (each.offset, each.size)):
        if entry.slices:
            continue
        dtype = entry.dtype
        if dtype is not None and dtype.nbytes(math.prod(entry.shape)) != entry.size:
            raise ValueError(f"{list(entry.shape)} of {dtype} are not {entry.size:,} bytes")
        if entry.size and entry.offset < ends[entry.shard]:
            raise ValueError("two tensors overlap")
        ends[entry.shard] = max(ends[entry.shard], entry.offset + entry.size)
    for end, file in zip(ends, files, strict=True):
        if end > file.size:
            problem = f"truncated: its tensors need {end:,} bytes, the file has {file.size:,}"
            raise InputError(file.name, problem)


def _model(bundle: Bundle, files: Sequence[Source], shared: Shared) -> frozenset[bytes]:
    """The keys of the model's variables: of all that are numbers, those that the object graph
    or the names tell are no optimizer's, no random generator's and no lookup table's."""
    numbers = [
        key
        for key, entry in bundle.entries.items()
        if entry.dtype is not None and not key.startswith(NUL)
    ]
    graph = bundle.entries.get(GRAPH_KEY)
    if graph is None:
        named = {*numbers} - {*_tables(bundle.entries)}
        return frozenset(weights_by_name({key: bundle.entries[key].shape for key in named}))
    text = _string(graph, files[graph.shard])
    # Checkpoints of one run have the same graph.
    found = shared.once(frozenset, hashlib.sha256(text).digest(), lambda: model_keys(text))
    return frozenset(
        key
        for key in found.intersection(numbers)
        if not (bundle.entries[key].number in _INTEGERS and _RANDOM.fullmatch(key))
    )


def _tables(entries: Mapping[bytes, Entry]) -> Iterator[bytes]:
    """The keys of lookup tables: their rows may have another order in each checkpoint."""
    for key, entry in entries.items():
        values = key.removesuffix(b"-keys") + b"-values"
        floats = entry.dtype is not None and entry.dtype.floating
        if key.endswith(b"-keys") and values in entries and not floats:
            yield from (key, values)


def _string(entry: Entry, file: Source) -> bytes:
    """The one string that an entry holds. ValueError if it is none, or its checksum denies it."""
    if entry.number != STRING or entry.shape or entry.size > GRAPH_LIMIT:
        raise ValueError("its object graph is no string, or far too large")
    with Pool() as pool:
        data = bytes(pool.read(file, entry.offset, entry.size))
    length, at = varint(data, 0)
    # The checksum is that of the length as four bytes, and of what follows.
    if at + 4 + length != len(data) or entry.crc != crc_function("crc32c")(
        length.to_bytes(4, "little") + data[at:]
    ):
        raise ValueError("its object graph does not have its CRC-32C")
    return data[at + 4 :]


def _table(bundle: Bundle, model: frozenset[bytes]) -> tuple[TableBuilder, list[list[Entry]]]:
    """The model's variables, and for each the entries that its bytes have."""
    builder, places = TableBuilder(), []
    for key, entry in bundle.entries.items():
        if key not in model:
            continue
        name, dtype = _text(key), entry.dtype
        assert dtype is not None
        if not entry.slices:
            builder.add(name, (dtype, entry.shape, None), entry.offset, entry.shard)
            places.append([entry])
            continue
        try:
            slices = slices_of(bundle.entries, key, entry)
        except ValueError as error:
            raise ValueError(f"'{name}': {error}") from None
        boxes = tuple(Box(part.shard, part.offset, start, part.shape) for start, _, part in slices)
        builder.add_boxes(Tensor(TensorSpec(name, dtype, entry.shape), boxes, entry.shape))
        places.append([part for _, _, part in slices])
    return builder, places


def _scalars(bundle: Bundle, files: Sequence[Source]) -> Mapping[str, Scalar]:
    """What counts the steps of training."""
    found: dict[str, Scalar] = {}
    with Pool() as pool:
        for key, name in _COUNTS.items():
            entry = bundle.entries.get(key)
            if entry is not None and entry.number in _INTEGERS and not entry.shape:
                data = bytes(pool.read(files[entry.shard], entry.offset, entry.size))
                if crc_function("crc32c")(data) != entry.crc:
                    raise ValueError(f"'{_text(key)}' does not have its CRC-32C")
                found[name] = int.from_bytes(data, "little", signed=True)
    return found
