"""The bytes that torch writes for nearly every tensor, recognised at once.

Some 25 opcodes rebuild a tensor, always the same ones: one regular expression reads them in a
third of the time. What differs in anything is left to the machine's opcodes.
"""

from __future__ import annotations

import re
import struct

from swavg.formats.torch.machine import INSIDE, Machine
from swavg.formats.torch.objects import Global, View
from swavg.formats.torch.rebuild import ordered, tensor

_GET = rb"(h.|j....)"
_PUT = rb"r(....)"
_INT = rb"(?:K.|M..|J....)"
_INTS = rb"(\)|" + _INT + rb"{1,3}[\x85-\x87]|\(" + _INT + rb"{4,8}t)(?:" + _PUT + rb")?"
_match = re.compile(
    # A persistent id: ("storage", class, key, location, count of elements)
    rb"\(\(" + _GET + _GET + rb"X(.)\0\0\0([0-9]+)" + _PUT + rb"(?:h.|j....)"
    # ..., perhaps None, then offset, shape, strides, requires_grad, and an empty OrderedDict.
    rb"(" + _INT + rb")N?t" + _PUT + rb"Q(" + _INT + rb")" + _INTS + _INTS + rb"[\x88\x89]"
    + _GET + rb"\)R" + _PUT + rb"t" + _PUT + rb"R",
    re.DOTALL,
).match  # fmt: skip
_numbers = re.compile(_INT, re.DOTALL).findall
_indices = struct.Struct("<6I").pack
_MAX_CACHE = 4096


class TensorPattern:
    """Reads tensors for ``machine``; equal shapes are one tuple."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._tuples: dict[bytes, tuple[int, ...] | None] = {}

    def read(self, function: object, at: int) -> tuple[View, int] | None:
        """The tensor that ``function`` makes of the arguments at ``at``, and where they end; None
        if they are not those that torch writes."""
        machine = self._machine
        if not isinstance(function, Global) or function.build is not tensor:
            return None
        match = _match(machine.data, at)
        if match is None:
            return None
        (
            tag, kind, length, key, put0, count, put1, first, shape, put2, strides, put3, hooks,
            put4, put5,
        ) = match.groups(b"")  # fmt: skip
        memo = machine.memo
        place = len(memo)
        puts = b"".join((put0, put1, put2, put3, put4, put5))
        storage_class, hooks_class = machine.recall(kind), machine.recall(hooks)
        size, stride = self._tuple(shape), self._tuple(strides)
        numel, offset = _number(count), _number(first)
        if (
            length[0] != len(key)
            or puts != _indices(*range(place, place + 6))[: len(puts)]
            or machine.recall(tag) != "storage"
            or not isinstance(storage_class, Global)
            or not isinstance(hooks_class, Global)
            or hooks_class.build is not ordered
            or size is None
            or stride is None
            or numel < 0
        ):
            return None
        text = key.decode()
        storage = machine.storage(text, storage_class, numel)
        if storage.dtype is None:
            return None
        memo += (text, INSIDE)
        if put2:
            memo.append(size)
        if put3:
            memo.append(stride)
        memo += (INSIDE, INSIDE)
        return View(storage, storage.dtype, offset, size, stride), match.end()

    def _tuple(self, raw: bytes) -> tuple[int, ...] | None:
        if raw in self._tuples:
            return self._tuples[raw]
        numbers = tuple(map(_number, _numbers(raw)))
        # One to three have an opcode for each length, more follow a mark; none is one byte.
        known = raw[0] == 40 or len(numbers) == max(0, raw[-1] - 0x84)
        if len(self._tuples) < _MAX_CACHE:
            self._tuples[raw] = numbers if known else None
        return numbers if known else None


def _number(raw: bytes) -> int:
    return int.from_bytes(raw[1:], "little", signed=raw[0] == 74)
