"""Runs of the records that make up nearly all of a ``.metadata``, read at once into columns.

Each chunk of each rank is some 70 opcodes, always the same ones: its box among those of its tensor,
and an entry that says where it lies. What the first record names, the others refer to by the same
bytes, so that one regular expression finds all that follow. What differs in anything is left to
the opcodes of the machine.
"""

from __future__ import annotations

import pickle
import re
from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from swavg.formats.tensors import Shape
from swavg.formats.torch.machine import Machine
from swavg.formats.torch.memo import SparseMemo
from swavg.formats.torch.objects import Global, Opaque, is_count

_REF = rb"h.|j...."
_INT = rb"(?:K.|M..|J....|\x8a(?:\x04.{4}|\x05.{5}|\x06.{6}|\x07.{7}|\x08.{8}))"
# The numbers of a torch.Size, in a tuple around a tuple.
_SIZE = (
    rb"((?:\)|" + _INT + rb"\x85\x94|" + _INT + rb"{2}\x86\x94|" + _INT + rb"{3}\x87\x94|\("
    + _INT + rb"{4,8}t\x94))\x85\x94R\x94"
)  # fmt: skip
_TEXT = rb"\x8c.[\x20-\x7e]+\x94|" + _REF
_NEW = rb"\)\x81\x94\}\x94\("

# In braces stand references to what has that name.
_CHUNK = (
    rb"{ChunkStorageMetadata}" + _NEW + rb"{offsets}{Size}" + _SIZE + rb"{sizes}{Size}" + _SIZE
    + rb"ub"
)  # fmt: skip
_ENTRY = (
    rb"{MetadataIndex}" + _NEW + rb"{fqn}(" + _TEXT + rb"){index}(?:N|" + _INT + rb")"
    + rb"(?:{offset}(?:{Size}" + _SIZE + rb"|(" + _REF + rb")))?ub"
    + rb"{_StorageInfo}" + _NEW + rb"{relative_path}(" + _TEXT + rb")"
    + rb"{offset}(" + _INT + rb"){length}(" + _INT + rb")ub"
)  # fmt: skip
_NAMED = re.compile(rb"\{(\w{3,})\}")
_ints = re.compile(_INT, re.DOTALL).findall
_NEW_TEXT, _EMPTY = 0x8C, b")"
_SIGNED, _LONG = ord("J"), 0x8A

_MOST_LEARNED = 8

# Memory of a run, of each of its records (more than it takes: this bounds the time as well), and of
# a text or shape that was not there before.
_RUN, _RECORD, _VALUE = 600, 120, 300

T = TypeVar("T")
Records = list[tuple[bytes, ...]]


@dataclass(frozen=True, eq=False, slots=True)
class ChunkRun:
    """Boxes of a tensor: where each starts, and its shape."""

    starts: Sequence[Shape]
    shapes: Sequence[Shape]


@dataclass(frozen=True, eq=False, slots=True)
class EntryRun:
    """Where chunks lie: of the tensor ``names[i]`` the one at ``starts[i]`` (None: of an object)
    has ``lengths[i]`` bytes from ``offsets[i]`` on of ``files[i]``. Nothing of it is checked."""

    names: Sequence[str]
    starts: Sequence[tuple[object, ...] | None]
    files: Sequence[str]
    offsets: array[int]
    lengths: array[int]


class Runs:
    """Reads runs of one pickle; equal texts and shapes are one object."""

    def __init__(self) -> None:
        self._chunks = _Pattern(_CHUNK)
        self._entries = _Pattern(_ENTRY)
        self._shapes: dict[bytes, Shape] = {}
        self._texts: dict[bytes, str] = {}

    def read_on(self, machine: Machine, built: Opaque) -> None:
        """Read the records that follow the one that was ``built``, and push them as a run."""
        name = built.of.name if isinstance(built.of, Global) else ""
        if name == "ChunkStorageMetadata" and (found := self._chunks.find(machine)):
            self._read_chunks(machine, *found)
        elif name == "_StorageInfo" and (found := self._entries.find(machine)):
            self._read_entries(machine, *found)

    def _read_chunks(self, machine: Machine, records: Records, end: int) -> None:
        starts, shapes = zip(*records, strict=True)
        if not self._know(machine, len(records), (), {*starts, *shapes}):
            return
        known = self._shapes.__getitem__
        machine.push(ChunkRun([*map(known, starts)], [*map(known, shapes)]))
        # The record, its state, two sizes, a tuple around each, and its own unless it is empty.
        _sparse(machine).total += 8 * len(records) - starts.count(_EMPTY) - shapes.count(_EMPTY)
        machine.at = end

    def _read_entries(self, machine: Machine, records: Records, end: int) -> None:
        names, starts, start_refs, files, offsets, lengths = zip(*records, strict=True)
        texts = {raw for raw in {*names, *files} if raw[0] == _NEW_TEXT}
        if not self._know(machine, len(records), texts, {*starts} - {b""}):
            return
        memo, known = _sparse(machine), self._texts
        at = memo.total
        for name, start, file in zip(names, starts, files, strict=True):
            at += 2
            if name[0] == _NEW_TEXT:
                memo.add(at, known[name])
                at += 1
            if start:
                at += 2 if start == _EMPTY else 3
            at += 2
            if file[0] == _NEW_TEXT:
                memo.add(at, known[file])
                at += 1
        memo.total = at
        texts_of = {raw: known[raw] for raw in texts}
        texts_of |= _recalled(machine, {*names, *files} - texts, str)
        starts_of = {raw: self._shapes[raw] for raw in {*starts} - {b""}}
        starts_of |= _recalled(machine, {*start_refs} - {b""}, tuple)
        run = EntryRun(
            [texts_of[raw] for raw in names],
            [starts_of.get(start or ref) for start, ref in zip(starts, start_refs, strict=True)],
            [texts_of[raw] for raw in files],
            array("q", map(_number, offsets)),
            array("q", map(_number, lengths)),
        )
        # Key and value of a dictionary.
        machine.stack += (run, run)
        machine.at = end

    def _know(
        self, machine: Machine, count: int, texts: Collection[bytes], shapes: Collection[bytes]
    ) -> bool:
        """Whether all texts and shapes are as torch writes them: then they are known from now on,
        and ``count`` records are paid for."""
        new_texts = {raw: raw[2:-1].decode() for raw in texts if raw not in self._texts}
        unknown = [raw for raw in shapes if raw not in self._shapes]
        new_shapes = {raw: tuple(map(_number, _ints(raw))) for raw in unknown}
        if any(raw[1] != len(text) for raw, text in new_texts.items()):
            return False
        if not all(is_count(size) for shape in new_shapes.values() for size in shape):
            return False
        machine.spend(_RUN + _RECORD * count + _VALUE * (len(new_texts) + len(new_shapes)))
        self._texts |= new_texts
        self._shapes |= new_shapes
        return True


class _Pattern:
    """Finds records. Which bytes refer to what is learned from the first that are met."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        seen: set[bytes] = set()

        def group(match: re.Match[bytes]) -> bytes:
            name = match[1]
            again = name in seen
            seen.add(name)
            return b"(?P=%s)" % name if again else b"(?P<%s>%s)" % (name, _REF)

        self._any = re.compile(_NAMED.sub(group, text), re.DOTALL)
        self._left = _MOST_LEARNED
        self._record: re.Pattern[bytes] | None = None
        self._records: re.Pattern[bytes] | None = None

    def find(self, machine: Machine) -> tuple[Records, int] | None:
        """The records that follow at once, and where they end; None if there are none."""
        match = self._records.match(machine.data, machine.at) if self._records else None
        if match is None and self._learn(machine) and self._records is not None:
            match = self._records.match(machine.data, machine.at)
        # What is referred to must be what it was when it was learned.
        if match is None or self._record is None or machine.rewritten:
            return None
        return self._record.findall(machine.data, machine.at, match.end()), match.end()

    def _learn(self, machine: Machine) -> bool:
        """Learn from the record that follows; False if it is none, or was seen too often."""
        match = self._any.match(machine.data, machine.at) if self._left else None
        if match is None:
            return False
        self._left -= 1
        refs = {name.encode(): ref for name, ref in match.groupdict().items()}
        for name, ref in refs.items():
            value = machine.recall(ref) if ref is not None else name.decode()
            if (value.name if isinstance(value, Global) else value) != name.decode():
                return False

        def literal(match: re.Match[bytes]) -> bytes:
            ref = refs[match[1]]
            return b"(?!)" if ref is None else re.escape(ref)

        one = _NAMED.sub(literal, self._text)
        self._record = re.compile(one, re.DOTALL)
        self._records = re.compile(b"(?:" + one + b")+", re.DOTALL)
        return True


def _sparse(machine: Machine) -> SparseMemo:
    if not isinstance(machine.memo, SparseMemo):
        machine.memo = SparseMemo(machine.memo)
    return machine.memo


def _recalled(machine: Machine, refs: Collection[bytes], kind: type[T]) -> dict[bytes, T]:
    """What opcodes get from the memo, which must be of this type."""
    values = {}
    for ref in refs:
        value = machine.recall(ref)
        if not isinstance(value, kind):
            raise pickle.UnpicklingError(f"a {kind.__name__} is expected")
        values[ref] = value
    return values


def _number(raw: bytes) -> int:
    """The number that an opcode pushes."""
    code = raw[0]
    if code == _LONG:
        return int.from_bytes(raw[2:], "little", signed=True)
    return int.from_bytes(raw[1:], "little", signed=code == _SIGNED)
