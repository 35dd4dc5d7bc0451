"""The opcodes of a pickle that torch seldom writes, each as a function of the machine.

``COST`` and what their bytes cost pay for what they make, if it is not larger.
"""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Callable

from swavg.formats.torch.machine import Machine
from swavg.formats.torch.objects import Global, Opaque, PickledBytes, Refused, Storage, View
from swavg.formats.torch.rebuild import call

COST = 200
_MAX_DIGITS = 4000
# No names in the file.
_SET, _FROZENSET = Global("builtins", "set"), Global("builtins", "frozenset")


def _text(raw: bytes) -> str:
    return str(raw, "utf-8", "surrogatepass")


def _old_text(raw: bytes) -> str:
    """A string of Python 2."""
    return raw.decode("utf-8", "surrogateescape")


def _size(m: Machine) -> int:
    """A length that is written as a signed number."""
    if (size := m.number(4, signed=True)) < 0:
        raise pickle.UnpicklingError("a value of negative length")
    return size


def _quoted(raw: bytes) -> str:
    if len(raw) < 2 or raw[0] != raw[-1] or raw[:1] not in (b'"', b"'"):
        raise pickle.UnpicklingError("the STRING opcode argument must be quoted")
    return _old_text(bytes(codecs.escape_decode(raw[1:-1])[0]))


def _int(raw: bytes) -> int:
    if len(raw) > _MAX_DIGITS:
        raise pickle.UnpicklingError("a number of too many digits")
    return raw == b"01" if raw in (b"00", b"01") else int(raw.rstrip(b"L"), 0)


def _index(raw: bytes) -> int:
    if len(raw) > 20:
        raise pickle.UnpicklingError("a memo index of too many digits")
    return int(raw)


def _global(m: Machine) -> Global:
    module, name = m.line(), m.line()
    return m.named(module.decode(), name.decode())


def _stack_global(m: Machine) -> None:
    module, name = m.pop(2)
    if not isinstance(name, str) or not isinstance(module, str):
        raise pickle.UnpicklingError("STACK_GLOBAL requires str")
    m.push(m.named(module, name))


def _extension(m: Machine, code: int) -> None:
    # The registry of this process is none of the file's business.
    m.push(m.named("copyreg", f"extension {code}"))


def _call(m: Machine, function: object, args: list[object]) -> None:
    m.spend(8 * len(args))
    m.charge_copy(tuple(args))
    m.push(call(function, tuple(args)))


def _obj(m: Machine) -> None:
    kind, *args = m.pop_mark()
    _call(m, kind, args)


def _newobj_ex(m: Machine) -> None:
    kind, args, keywords = m.pop(3)
    if not isinstance(kind, (Global, Opaque)):
        raise pickle.UnpicklingError("makes an object of something that is no class")
    m.push(Opaque(kind, (args, keywords)))


def _build(m: Machine) -> None:
    (state,) = m.pop(1)
    target = m.stack[-1]
    if isinstance(target, Opaque):
        target.state = state
    elif not isinstance(target, (dict, list, View, Refused, Global, Storage, tuple)):
        raise pickle.UnpicklingError("sets the state of something that has none")


def _dict(m: Machine) -> None:
    flat = m.pop_mark()
    m.push({})
    m.fill(flat)


def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.pop_mark()


def _proto(m: Machine) -> None:
    if (protocol := m.number(1)) > pickle.HIGHEST_PROTOCOL:
        raise pickle.UnpicklingError(f"unsupported pickle protocol: {protocol}")


def _frame(m: Machine) -> None:
    m.begin_frame(m.number(8))


def _bytes(m: Machine, size: int) -> None:
    value = m.value(size, PickledBytes)
    if isinstance(value, PickledBytes):
        value.at = m.at - size
    m.push(value)


def _buffer(m: Machine) -> None:
    raise pickle.UnpicklingError("a buffer that is not in the pickle")


HANDLERS: dict[int, Callable[[Machine], object]] = {
    ord("0"): _pop,
    ord("1"): lambda m: m.pop_mark(),
    ord("2"): lambda m: m.push(m.stack[-1]),
    ord("F"): lambda m: m.push(float(m.line())),
    ord("I"): lambda m: m.push(_int(m.line())),
    ord("L"): lambda m: m.push(_int(m.line())),
    ord("P"): lambda m: m.push(m.persistent(m.line().decode("ascii"))),
    ord("S"): lambda m: m.push(_quoted(m.line())),
    ord("T"): lambda m: m.push(m.value(_size(m), _old_text)),
    ord("U"): lambda m: m.push(m.value(m.number(1), _old_text)),
    ord("V"): lambda m: m.push(str(m.line(), "raw-unicode-escape")),
    0x8D: lambda m: m.push(m.value(m.number(8), _text)),
    ord("B"): lambda m: _bytes(m, m.number(4)),
    ord("C"): lambda m: _bytes(m, m.number(1)),
    0x8E: lambda m: _bytes(m, m.number(8)),
    0x96: lambda m: _bytes(m, m.number(8)),
    0x8A: lambda m: m.push(m.number(m.number(1), signed=True)),
    0x8B: lambda m: m.push(m.number(_size(m), signed=True)),
    ord("a"): lambda m: m.extend(m.pop(1)),
    ord("e"): lambda m: m.extend(m.pop_mark()),
    0x90: lambda m: m.extend(m.pop_mark()),
    ord("s"): lambda m: m.fill(m.pop(2)),
    ord("]"): lambda m: m.push([]),
    # Sets stay lists: nothing has to be hashed to find tensors.
    0x8F: lambda m: m.push(Opaque(_SET)),
    0x91: lambda m: m.push(Opaque(_FROZENSET, (m.pop_mark(),))),
    ord("l"): lambda m: m.push(m.pop_mark()),
    ord("d"): _dict,
    ord("b"): _build,
    ord("c"): lambda m: m.push(_global(m)),
    0x93: _stack_global,
    ord("i"): lambda m: _call(m, _global(m), m.pop_mark()),
    ord("o"): _obj,
    0x92: _newobj_ex,
    0x82: lambda m: _extension(m, m.number(1)),
    0x83: lambda m: _extension(m, m.number(2)),
    0x84: lambda m: _extension(m, _size(m)),
    ord("p"): lambda m: m.put(_index(m.line()), m.stack[-1]),
    ord("g"): lambda m: m.push(m.get(_index(m.line()))),
    0x80: _proto,
    0x95: _frame,
    0x97: _buffer,
    0x98: _buffer,
}
