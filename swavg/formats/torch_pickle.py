"""Reading a torch pickle without torch, and without running or importing anything of it.

The pure-Python unpickler of the standard library walks the opcodes; every global is only a name.
The few that rebuild tensors and dictionaries give values of ``torch_values``, all others
stand-ins. (The C unpickler takes gigabytes for a memo index of a few bytes.)
"""

from __future__ import annotations

import pickle
from struct import unpack
from typing import Any, BinaryIO

from swavg.dtypes import BY_NAME, BY_TORCH_STORAGE
from swavg.errors import InputError
from swavg.formats.torch_values import (
    COPYING,
    Global,
    Opaque,
    Refused,
    Storage,
    View,
    called,
    dict_key,
)

# Bytes of a pickle, and opcodes: 8 million opcodes hold some 200,000 tensors with their optimizer
# state, and make less than 80 bytes each.
MAX_BYTES = 256 << 20
MAX_OPCODES = 8_000_000

# Storages whose elements are not averaged, but whose size places what lies behind them.
_OPAQUE_STORAGES = {
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
}


def _is_text(value: Any) -> str | None:
    """``value`` as text (Python 2 wrote bytes), None if it is none."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None


# Typed as Any: the pure-Python class is not part of the module's typed surface.
_Unpickler: Any = pickle._Unpickler  # type: ignore[attr-defined, unused-ignore]


class InertUnpickler(_Unpickler):  # type: ignore[misc]
    """Reads one pickle from ``file``, at most ``limit`` bytes of it. ``storages`` then holds
    every storage it names, and ``used`` the bytes taken."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self.storages: dict[tuple[str, str, int], Storage] = {}
        self.used = 0
        self._limit = min(limit, MAX_BYTES)
        self._globals: dict[tuple[str, str], Global] = {}
        self._opcodes = MAX_OPCODES

    def load(self) -> Any:
        file_read, file_readline, limit = self._file_read, self._file_readline, self._limit

        def read(count: int) -> bytes:
            # Declared lengths are believed only as far as there are bytes.
            if count > limit - self.used:
                raise EOFError
            data: bytes = file_read(count)
            if len(data) != count:
                raise EOFError
            self.used += count
            return data

        def readline() -> bytes:
            line: bytes = file_readline(limit - self.used)
            if not line.endswith(b"\n"):
                raise EOFError
            self.used += len(line)
            return line

        self.read, self.readline = read, readline
        self.metastack: list[list[Any]] = []
        self.stack: list[Any] = []
        self.proto = 0
        self.append = self.stack.append
        dispatch = self.dispatch
        while True:
            self._opcodes -= 1
            if self._opcodes < 0:
                raise pickle.UnpicklingError(f"more than {MAX_OPCODES:,} opcodes")
            opcode = read(1)[0]
            if opcode == 46:  # STOP
                return self.stack.pop()
            handler = dispatch.get(opcode)
            if handler is None:
                raise pickle.UnpicklingError(f"opcode {opcode:#x} is unknown")
            handler(self)

    def find_class(self, module: str, name: str) -> Global:
        # Everything must stay a name, so the standard lookup is not called.
        if module == "__builtin__":
            module = "builtins"
        found = self._globals.get((module, name))
        if found is None:
            found = self._globals[module, name] = Global(module, name)
        return found

    def persistent_load(self, saved: Any) -> Any:
        if not isinstance(saved, tuple) or not saved:
            raise pickle.UnpicklingError("a persistent id that is no tuple")
        tag = _is_text(saved[0])
        if tag == "module" and len(saved) > 1:
            return saved[1]
        if tag != "storage" or len(saved) not in (5, 6):
            raise pickle.UnpicklingError("a persistent id that is no storage")
        kind, key, numel = saved[1], _is_text(saved[2]), saved[4]
        if not isinstance(kind, Global) or not kind.name.endswith("Storage"):
            raise pickle.UnpicklingError("a storage of no known class")
        if key is None or type(numel) is not int or not 0 <= numel < 1 << 62:
            raise pickle.UnpicklingError("a storage without a key or with an impossible size")
        dtype = BY_TORCH_STORAGE.get(kind.name)
        if kind.name in ("UntypedStorage", "_UntypedStorage"):
            dtype = BY_NAME["uint8"]
        itemsize = dtype.itemsize if dtype is not None else _OPAQUE_STORAGES.get(kind.name)
        storage = Storage(key, kind.name, dtype, itemsize, numel, numel)
        storage = self.storages.setdefault((key, kind.name, numel), storage)
        if len(saved) == 5 or saved[5] is None:
            return storage
        match saved[5]:
            case (_, int(start), int(count)) if start >= 0 and 0 <= count <= numel - start:
                return Storage(key, kind.name, dtype, itemsize, count, numel, start)
        raise pickle.UnpicklingError("a view of a storage that reaches beyond it")

    def _call(self, function: Any, args: Any) -> Any:
        build = getattr(function, "build", None)
        if build in COPYING and isinstance(args, tuple):
            self._opcodes -= sum(len(arg) for arg in args if isinstance(arg, (dict, list, tuple)))
        return called(function, args)

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _newobj_ex(self) -> None:
        keywords, args, kind = self.stack.pop(), self.stack.pop(), self.stack.pop()
        if not isinstance(kind, (Global, Opaque)):
            raise pickle.UnpicklingError("makes an object of something that is no class")
        self.append(Opaque(kind, (args, keywords)))

    def _inst(self) -> None:
        kind = self.find_class(self.readline()[:-1].decode(), self.readline()[:-1].decode())
        args = tuple(self.pop_mark())
        self.append(self._call(kind, args))

    def _obj(self) -> None:
        kind, *args = self.pop_mark()
        self.append(self._call(kind, tuple(args)))

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Opaque):
            target.state = state
        elif not isinstance(target, (dict, list, View, Refused, Global, Storage, tuple)):
            raise pickle.UnpicklingError("sets the state of something that has none")

    def get_extension(self, code: int) -> None:
        # The registry of this process is none of the file's business.
        self.append(self.find_class("copyreg", f"extension {code}"))

    def _append(self) -> None:
        value = self.stack.pop()
        self._extend(self.stack[-1], [value])

    def _appends(self) -> None:
        values = self.pop_mark()
        self._extend(self.stack[-1], values)

    def _extend(self, target: Any, values: list[Any]) -> None:
        if type(target) is list:
            target.extend(values)
        elif isinstance(target, Opaque):
            target.items.extend(values)
        else:
            raise pickle.UnpicklingError("appends to something that is no list")

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill(self.stack[-1], [key, value])

    def _setitems(self) -> None:
        flat = self.pop_mark()
        self._fill(self.stack[-1], flat)

    def _dict(self) -> None:
        filled: dict[Any, Any] = {}
        self._fill(filled, self.pop_mark())
        self.append(filled)

    def _fill(self, target: Any, flat: list[Any]) -> None:
        if isinstance(target, Opaque):
            target = target.pairs
        if type(target) is not dict:
            raise pickle.UnpicklingError("sets items of something that is no dictionary")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            target[dict_key(key)] = value

    # The cheapest opcodes make the largest objects; they count for more.
    def _mark(self) -> None:
        self._opcodes -= 1
        self.load_mark()

    def _empty_list(self) -> None:
        self._opcodes -= 1
        self.append([])

    def _empty_dict(self) -> None:
        self._opcodes -= 1
        self.append({})

    # Sets stay lists: nothing has to be hashed to find tensors.
    def _empty_set(self) -> None:
        self._opcodes -= 4
        self.append(Opaque(self.find_class("builtins", "set")))

    def _frozenset(self) -> None:
        values = self.pop_mark()
        self.append(Opaque(self.find_class("builtins", "frozenset"), (values,)))

    def _bytearray8(self) -> None:
        (count,) = unpack("<Q", self.read(8))
        self.append(self.read(count))

    def _frame(self) -> None:
        (count,) = unpack("<Q", self.read(8))
        if count > self._limit - self.used:
            raise EOFError

    def _long4(self) -> None:
        (count,) = unpack("<i", self.read(4))
        if count < 0:
            raise pickle.UnpicklingError("a number of negative length")
        self.append(int.from_bytes(self.read(count), "little", signed=True))

    dispatch = {  # noqa: RUF012 - the base class keeps it so
        **_Unpickler.dispatch,
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _reduce,
        pickle.NEWOBJ_EX[0]: _newobj_ex,
        pickle.INST[0]: _inst,
        pickle.OBJ[0]: _obj,
        pickle.BUILD[0]: _build,
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _appends,
        pickle.ADDITEMS[0]: _appends,
        pickle.SETITEM[0]: _setitem,
        pickle.SETITEMS[0]: _setitems,
        pickle.DICT[0]: _dict,
        pickle.MARK[0]: _mark,
        pickle.EMPTY_LIST[0]: _empty_list,
        pickle.EMPTY_DICT[0]: _empty_dict,
        pickle.EMPTY_SET[0]: _empty_set,
        pickle.FROZENSET[0]: _frozenset,
        pickle.BYTEARRAY8[0]: _bytearray8,
        pickle.FRAME[0]: _frame,
        pickle.LONG4[0]: _long4,
    }


def read_pickle(path: str, file: BinaryIO, limit: int) -> tuple[Any, InertUnpickler]:
    """The object of the pickle at the position of ``file`` (the next byte is the one behind it),
    and its unpickler. InputError on anything wrong: no other error comes out of a file."""
    unpickler = InertUnpickler(file, limit)
    try:
        return unpickler.load(), unpickler
    except EOFError:
        if limit > MAX_BYTES:
            problem = f"its pickle is corrupt, or larger than {MAX_BYTES >> 20} MiB"
        else:
            problem = "its pickle ends early: the file is truncated or corrupt"
        raise InputError(path, problem) from None
    except RecursionError:
        raise InputError(path, "its pickle is nested too deeply") from None
    except Exception as error:
        detail = str(error)[:200] or type(error).__name__
        raise InputError(path, f"its pickle cannot be read: {detail}") from None
