"""The opcodes of a pickle that torch seldom writes, each as a function of the machine.

``COST`` and four times the bytes that they take pay for what they make, if it is not larger.
"""

from __future__ import annotations

import codecs
import pickle
import struct
from collections.abc import Callable

from swavg.formats.torch.machine import LARGE, Machine
from swavg.formats.torch.objects import Global, Opaque, Refused, Storage, View
from swavg.formats.torch.rebuild import call

COST = 200
_MAX_DIGITS = 4000


def _value(m: Machine, size: int, decode: Callable[[bytes], object]) -> None:
    if size > LARGE:
        m.skip(size)
        m.stack.append(m.large())
    else:
        m.stack.append(decode(m.read(size)))


def _text(raw: bytes) -> str:
    return str(raw, "utf-8", "surrogatepass")


def _old_text(raw: bytes) -> str:
    """A string of Python 2."""
    return raw.decode("utf-8", "surrogateescape")


def _length(format: str) -> Callable[[Machine], int]:
    packed = struct.Struct(format)

    def read(m: Machine) -> int:
        size: int = packed.unpack(m.read(packed.size))[0]
        if size < 0:
            raise pickle.UnpicklingError("a value of negative length")
        return size

    return read


_size1, _size4, _size8 = _length("<B"), _length("<I"), _length("<Q")
_signed4 = _length("<i")


def _string(m: Machine) -> None:
    raw = m.line()
    if len(raw) < 2 or raw[0] != raw[-1] or raw[:1] not in (b'"', b"'"):
        raise pickle.UnpicklingError("the STRING opcode argument must be quoted")
    m.stack.append(_old_text(bytes(codecs.escape_decode(raw[1:-1])[0])))


def _number(m: Machine) -> None:
    raw = m.line()
    if len(raw) > _MAX_DIGITS:
        raise pickle.UnpicklingError("a number of too many digits")
    if raw in (b"00", b"01"):
        m.stack.append(raw == b"01")
    else:
        m.stack.append(int(raw.rstrip(b"L"), 0))


def _long(m: Machine, size: int) -> None:
    m.stack.append(int.from_bytes(m.read(size), "little", signed=True))


def _index(m: Machine) -> int:
    raw = m.line()
    if len(raw) > 20:
        raise pickle.UnpicklingError("a memo index of too many digits")
    return int(raw)


def _global(m: Machine) -> None:
    module, name = m.line(), m.line()
    m.stack.append(m.named(module.decode(), name.decode()))


def _stack_global(m: Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise pickle.UnpicklingError("STACK_GLOBAL requires str")
    m.stack.append(m.named(module, name))


def _extension(m: Machine, code: int) -> None:
    # The registry of this process is none of the file's business.
    m.stack.append(m.named("copyreg", f"extension {code}"))


def _call(m: Machine, function: object, args: tuple[object, ...]) -> None:
    m.spend(8 * len(args))
    m.charge_copy(args)
    m.stack.append(call(function, args))


def _inst(m: Machine) -> None:
    _global(m)
    kind = m.stack.pop()
    _call(m, kind, tuple(m.pop_mark()))


def _obj(m: Machine) -> None:
    kind, *args = m.pop_mark()
    _call(m, kind, tuple(args))


def _newobj_ex(m: Machine) -> None:
    keywords, args, kind = m.stack.pop(), m.stack.pop(), m.stack.pop()
    if not isinstance(kind, (Global, Opaque)):
        raise pickle.UnpicklingError("makes an object of something that is no class")
    m.stack.append(Opaque(kind, (args, keywords)))


def _build(m: Machine) -> None:
    state = m.stack.pop()
    target = m.stack[-1]
    if isinstance(target, Opaque):
        target.state = state
    elif not isinstance(target, (dict, list, View, Refused, Global, Storage, tuple)):
        raise pickle.UnpicklingError("sets the state of something that has none")


def _append(m: Machine) -> None:
    value = m.stack.pop()
    m.extend(m.stack[-1], [value])


def _appends(m: Machine) -> None:
    values = m.pop_mark()
    m.extend(m.stack[-1], values)


def _setitem(m: Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.fill(m.stack[-1], [key, value])


def _setitems(m: Machine) -> None:
    flat = m.pop_mark()
    m.fill(m.stack[-1], flat)


def _list(m: Machine) -> None:
    values = m.pop_mark()
    m.stack.append(values)


def _dict(m: Machine) -> None:
    flat = m.pop_mark()
    m.stack.append({})
    m.fill(m.stack[-1], flat)


# Sets stay lists: nothing has to be hashed to find tensors.
def _set(m: Machine) -> None:
    m.stack.append(Opaque(m.named("builtins", "set")))


def _frozenset(m: Machine) -> None:
    values = m.pop_mark()
    m.stack.append(Opaque(m.named("builtins", "frozenset"), (values,)))


def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.pop_mark()


def _proto(m: Machine) -> None:
    if (protocol := m.read(1)[0]) > pickle.HIGHEST_PROTOCOL:
        raise pickle.UnpicklingError(f"unsupported pickle protocol: {protocol}")


def _frame(m: Machine) -> None:
    if _size8(m) > len(m.data) - m.at:
        raise EOFError


def _buffer(m: Machine) -> None:
    raise pickle.UnpicklingError("a buffer that is not in the pickle")


HANDLERS: dict[int, Callable[[Machine], object]] = {
    ord("0"): _pop,
    ord("1"): lambda m: m.pop_mark(),
    ord("2"): lambda m: m.stack.append(m.stack[-1]),
    ord("F"): lambda m: m.stack.append(float(m.line())),
    ord("I"): _number,
    ord("L"): _number,
    ord("P"): lambda m: m.stack.append(m.persistent(m.line().decode("ascii"))),
    ord("S"): _string,
    ord("T"): lambda m: _value(m, _signed4(m), _old_text),
    ord("U"): lambda m: _value(m, _size1(m), _old_text),
    ord("V"): lambda m: m.stack.append(str(m.line(), "raw-unicode-escape")),
    0x8D: lambda m: _value(m, _size8(m), _text),
    ord("B"): lambda m: _value(m, _size4(m), bytes),
    ord("C"): lambda m: _value(m, _size1(m), bytes),
    0x8E: lambda m: _value(m, _size8(m), bytes),
    0x96: lambda m: _value(m, _size8(m), bytes),
    0x8A: lambda m: _long(m, _size1(m)),
    0x8B: lambda m: _long(m, _signed4(m)),
    ord("a"): _append,
    ord("e"): _appends,
    0x90: _appends,
    ord("s"): _setitem,
    ord("u"): _setitems,
    ord("]"): lambda m: m.stack.append([]),
    ord("}"): lambda m: m.stack.append({}),
    0x8F: _set,
    0x91: _frozenset,
    ord("l"): _list,
    ord("d"): _dict,
    ord("b"): _build,
    ord("c"): _global,
    0x93: _stack_global,
    ord("i"): _inst,
    ord("o"): _obj,
    0x92: _newobj_ex,
    0x82: lambda m: _extension(m, _size1(m)),
    0x83: lambda m: _extension(m, int.from_bytes(m.read(2), "little")),
    0x84: lambda m: _extension(m, _signed4(m)),
    ord("p"): lambda m: m.put(_index(m), m.stack[-1]),
    ord("g"): lambda m: m.stack.append(m.get(_index(m))),
    0x80: _proto,
    0x95: _frame,
    0x97: _buffer,
    0x98: _buffer,
}
