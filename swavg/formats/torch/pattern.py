"""The bytes that torch writes for nearly every tensor, recognised at once.

Some 25 opcodes rebuild a tensor, always the same ones: one regular expression reads them in a
third of the time. What differs in anything is left to the machine's opcodes.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache

from swavg.formats.torch.machine import INSIDE, Machine
from swavg.formats.torch.objects import Global, View
from swavg.formats.torch.rebuild import ordered, tensor

_GET = rb"(?:h.|j....)"
_PUT = rb"r(....)"
_INT = rb"(?:K.|M..|J....)"
_INTS = rb"(\)|" + _INT + rb"{1,3}[\x85-\x87]|\(" + _INT + rb"{4,8}t)(?:" + _PUT + rb")?"
_match = re.compile(
    # A persistent id: ("storage", class, key, location, count of elements)
    rb"\(\((" + _GET + _GET + rb")X(.)\0\0\0([0-9]+)" + _PUT + _GET
    # ..., perhaps None, then offset, shape, strides, requires_grad, and an empty OrderedDict.
    + rb"(" + _INT + rb")N?t" + _PUT + rb"Q(" + _INT + rb")" + _INTS + _INTS + rb"[\x88\x89]"
    + rb"(" + _GET + rb")\)R" + _PUT + rb"t" + _PUT + rb"R",
    re.DOTALL,
).match  # fmt: skip
_gets = re.compile(_GET, re.DOTALL).findall
_ints = re.compile(_INT, re.DOTALL).findall
_indices = struct.Struct("<6I").pack
_MAX_CACHE = 4096


@lru_cache(_MAX_CACHE)
def _numbers(raw: bytes) -> tuple[int, ...] | None:
    """The numbers that opcodes push, alone or as a tuple."""
    parts = _ints(raw)
    numbers = tuple(int.from_bytes(part[1:], "little", signed=part[0] == 74) for part in parts)
    # One to three have an opcode for each length, more are between a mark and TUPLE.
    alone = sum(map(len, parts)) == len(raw)
    if not alone and raw[0] not in b"()" and len(numbers) != raw[-1] - 0x84:
        return None
    return numbers


class TensorPattern:
    """Reads tensors for ``machine``; equal shapes are one tuple."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._storage_classes: dict[bytes, Global | None] = {}

    def read(self, function: object, at: int) -> tuple[View, int] | None:
        """The tensor that ``function`` makes of the arguments at ``at``, and where they end; None
        if they are not those that torch writes."""
        machine = self._machine
        if not isinstance(function, Global) or function.build is not tensor:
            return None
        match = _match(machine.data, at)
        # What is read once is remembered, so the memo must stay as it is.
        if match is None or machine.rewritten:
            return None
        (
            head, length, key, put0, count, put1, first, shape, put2, strides, put3, hooks, put4,
            put5,
        ) = match.groups(b"")  # fmt: skip
        memo = machine.memo
        place = len(memo)
        puts = b"".join((put0, put1, put2, put3, put4, put5))
        if puts != _indices(*range(place, place + 6))[: len(puts)] or length[0] != len(key):
            return None
        gets = head + hooks
        kind = self._storage_classes.get(gets) or self._storage_class(gets)
        numel, offset, size, stride = map(_numbers, (count, first, shape, strides))
        if kind is None or not numel or not offset or size is None or stride is None:
            return None
        if numel[0] < 0:
            return None
        text = key.decode()
        storage = machine.storage(text, kind, numel[0])
        if storage.dtype is None:
            return None
        memo += (text, INSIDE)
        if put2:
            memo.append(size)
        if put3:
            memo.append(stride)
        memo += (INSIDE, INSIDE)
        return View(storage, storage.dtype, offset[0], size, stride), match.end()

    def _storage_class(self, gets: bytes) -> Global | None:
        """The class of the storage, if all that the memo gives is what it should be."""
        tag, kind, hooks = (self._machine.recall(get) for get in _gets(gets))
        ordinary = tag == "storage" and isinstance(hooks, Global) and hooks.build is ordered
        found = kind if ordinary and isinstance(kind, Global) else None
        if len(self._storage_classes) < _MAX_CACHE:
            self._storage_classes[gets] = found
        return found
