"""Reading a torch pickle without torch, and without running or importing anything of it.

A machine of its own walks the opcodes over the bytes in memory; every global is only a name. The
few that rebuild tensors and dictionaries give values of ``objects``, all others stand-ins.
Memory is estimated as it is given out and bounded, as is the count of opcodes: a small file
may ask for any amount of either.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Collection
from typing import NamedTuple

from swavg.errors import InputError
from swavg.formats.torch import opcodes as rare
from swavg.formats.torch.machine import INSIDE, LARGE_TEXT, Machine
from swavg.formats.torch.objects import Global, Opaque, PickledBytes, Storage
from swavg.formats.torch.pattern import TensorPattern
from swavg.formats.torch.rebuild import call, default, ordered
from swavg.gc_pause import paused_gc

# Of a pickle: its bytes, its opcodes, and the memory that its objects may take: that of some
# 240,000 tensors, those of the optimizer counted.
MAX_BYTES = 256 << 20
MAX_OPCODES = 8_000_000
MAX_MEMORY = 200 << 20

_BLOCK = 1 << 12
_COPYING = (ordered, default)
_UINT16, _INT32 = struct.Struct("<H").unpack_from, struct.Struct("<i").unpack_from
_UINT32, _DOUBLE = struct.Struct("<I").unpack_from, struct.Struct(">d").unpack_from


class Graph(NamedTuple):
    """A pickle: its object, the storages that it names, its length in bytes, a bound of its opcodes
    (in units of a few thousand: an honest graph has no more entries), and the globals it names."""

    top: object
    storages: Collection[Storage]
    nbytes: int
    opcodes: int
    globals: Collection[Global]


ReadOn = Callable[[Machine, Opaque], None]


class TruncatedError(InputError):
    """The bytes end inside the pickle: it is cut short, or goes on behind what was read."""


def unpickle(
    path: str,
    data: bytes,
    *,
    max_opcodes: int = MAX_OPCODES,
    max_memory: int = MAX_MEMORY,
    more: Callable[[int], bytes] | None = None,
    read_on: ReadOn | None = None,
) -> Graph:
    """The pickle at the start of ``data``. InputError (with ``path``) on anything wrong: no other
    error comes out of a file.

    ``more(size)`` reads further bytes of a pickle in frames, about so many. ``read_on`` may read
    what follows an object whose state was set, in its own way.
    """
    machine = Machine(data, max_memory, more)
    try:
        with paused_gc():
            top, opcodes = _run(machine, max_opcodes, read_on)
    except (EOFError, struct.error, IndexError) as error:
        if isinstance(error, IndexError) and machine.at < len(machine.data):
            problem = "its pickle cannot be read: it takes what is not there"
            raise InputError(path, problem) from None
        problem = "its pickle ends early: the file is truncated or corrupt"
        raise TruncatedError(path, problem) from None
    except RecursionError:
        raise InputError(path, "its pickle is nested too deeply") from None
    except Exception as error:
        detail = str(error)[:200] or type(error).__name__
        raise InputError(path, f"its pickle cannot be read: {detail}") from None
    return Graph(top, machine.storages.values(), machine.at, opcodes, machine.globals.values())


def _run(machine: Machine, max_opcodes: int, read_on: ReadOn | None) -> tuple[object, int]:
    """The object, and the count of opcodes.

    One long function with everything in local variables: it runs 3 million opcodes a second.
    What torch writes for each tensor is here, the rest in ``opcodes``.
    """
    data, size, at = machine.data, len(machine.data), machine.at
    memo, room = machine.memo, machine.room
    stack, marks = machine.stack, machine.marks
    others, pattern = rare.HANDLERS, TensorPattern(machine)
    count = 0
    try:
        while count < max_opcodes:
            # Every opcode may leave a reference.
            room -= 8 * _BLOCK
            if room < 0:
                machine.out_of_memory()
            count += _BLOCK
            for _ in range(_BLOCK):
                opcode = data[at]
                at += 1
                if opcode == 114 or opcode == 113:  # LONG_BINPUT, BINPUT
                    if opcode == 114:
                        (index,) = _UINT32(data, at)
                        at += 4
                    else:
                        index = data[at]
                        at += 1
                    if index == len(memo):
                        memo.append(stack[-1])
                    else:
                        machine.put(index, stack[-1])
                        room -= 200
                elif opcode == 148:  # MEMOIZE
                    memo.append(stack[-1])
                elif opcode == 88 or opcode == 140:  # BINUNICODE, SHORT_BINUNICODE
                    if opcode == 88:
                        start = at + 4
                        at = start + _UINT32(data, at)[0]
                    else:
                        start = at + 1
                        at = start + data[at]
                    if at > size:
                        raise EOFError
                    if at - start > LARGE_TEXT:
                        stack.append(machine.large())
                    else:
                        text = str(data[start:at], "utf-8", "surrogatepass")
                        room -= text.__sizeof__()
                        stack.append(text)
                        if room < 0:
                            machine.out_of_memory()
                elif opcode == 104 or opcode == 106:  # BINGET, LONG_BINGET
                    if opcode == 104:
                        index = data[at]
                        at += 1
                    else:
                        (index,) = _UINT32(data, at)
                        at += 4
                    value = memo[index] if index < len(memo) else INSIDE
                    stack.append(value if value is not INSIDE else machine.get(index))
                elif opcode == 40:  # MARK
                    if data[at] == 40 and stack and (found := pattern.read(stack[-1], at - 1)):
                        stack[-1], at = found
                        room -= 480
                        continue
                    marks.append(stack)
                    stack = []
                    room -= 64
                elif opcode == 75:  # BININT1
                    stack.append(data[at])
                    at += 1
                elif opcode == 133:  # TUPLE1
                    stack[-1] = (stack[-1],)
                    room -= 48
                elif opcode == 116:  # TUPLE
                    parts = tuple(stack)
                    stack = marks.pop()
                    stack.append(parts)
                    room -= 40 + 8 * len(parts)
                elif opcode == 82 or opcode == 129:  # REDUCE, NEWOBJ
                    args = stack.pop()
                    function = stack[-1]
                    room -= 80
                    if args and getattr(function, "build", None) in _COPYING:
                        machine.room = room
                        machine.charge_copy(args)
                        room = machine.room
                    stack[-1] = made = call(function, args)
                    if type(made) is PickledBytes:
                        made.find_text(data, at)
                        room -= len(made) + 200
                        if room < 0:
                            machine.out_of_memory()
                elif opcode == 134:  # TUPLE2
                    last = stack.pop()
                    stack[-1] = (stack[-1], last)
                    room -= 56
                elif opcode == 41:  # EMPTY_TUPLE
                    stack.append(())
                elif opcode == 81:  # BINPERSID
                    stack[-1] = machine.persistent(stack[-1])
                    room -= 200
                elif opcode == 137:  # NEWFALSE
                    stack.append(False)
                elif opcode == 77:  # BININT2
                    stack.append(_UINT16(data, at)[0])
                    at += 2
                    room -= 32
                elif opcode == 74:  # BININT
                    stack.append(_INT32(data, at)[0])
                    at += 4
                    room -= 32
                elif opcode == 78:  # NONE
                    stack.append(None)
                elif opcode == 71:  # BINFLOAT
                    stack.append(_DOUBLE(data, at)[0])
                    at += 8
                    room -= 24
                elif opcode == 135:  # TUPLE3
                    last, middle = stack.pop(), stack.pop()
                    stack[-1] = (stack[-1], middle, last)
                    room -= 64
                elif opcode == 136:  # NEWTRUE
                    stack.append(True)
                elif opcode == 125:  # EMPTY_DICT
                    stack.append({})
                    room -= 64
                elif opcode == 117:  # SETITEMS
                    flat, stack = stack, marks.pop()
                    machine.stack, machine.room = stack, room
                    machine.fill(flat)
                    room = machine.room
                elif opcode == 98 and isinstance(target := stack[-2], Opaque):  # BUILD
                    target.state = stack.pop()
                    if read_on is not None:
                        machine.at, machine.room, machine.stack = at, room, stack
                        read_on(machine, target)
                        at, room, memo = machine.at, machine.room, machine.memo
                elif opcode == 46:  # STOP
                    return stack.pop(), count
                else:
                    handler = others.get(opcode)
                    if handler is None:
                        raise pickle.UnpicklingError(f"opcode {opcode:#x} is unknown")
                    machine.at, machine.room, machine.stack = at, room - rare.COST, stack
                    handler(machine)
                    room = machine.room
                    at, stack = machine.at, machine.stack
                    if machine.data is not data:
                        data, size = machine.data, len(machine.data)
                    if room < 0:
                        machine.out_of_memory()
    finally:
        machine.at = at
    raise pickle.UnpicklingError(f"more than {max_opcodes:,} opcodes")
