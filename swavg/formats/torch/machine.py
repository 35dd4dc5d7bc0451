"""The state of an unpickler: its bytes, stack, memo, and what it may still spend."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import NoReturn

from swavg.dtypes import BY_NAME, BY_TORCH_STORAGE, DType
from swavg.formats.torch.objects import Global, Key, Opaque, Storage, dict_key
from swavg.formats.torch.rebuild import BUILDERS

# Longer texts and bytes are no names and no numbers: a stand-in is enough.
LARGE = 1 << 20
# A text may spell bytes, of which it has two for one.
LARGE_TEXT = 2 * LARGE
_MAX_STORAGE_KEY = 4096
# Behind a frame: the head of the next one, and opcodes too few for one.
_BEHIND = 1 << 10

# Storages whose elements are not averaged, but whose size places what lies behind them.
_OPAQUE_STORAGES = {
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
}

# No name in the file.
_BYTES = Global("builtins", "bytes")

# In the memo, what was inside a tensor that was read as a whole: nothing refers to it.
INSIDE = object()


class Machine:
    """Reads ``data`` from ``at`` on. ``room`` is the memory in bytes that objects may still take.

    ``marks`` are the stacks that lie below the marks, ``stack`` is the one above the last.
    """

    def __init__(self, data: bytes, room: int, more: Callable[[int], bytes] | None = None) -> None:
        self.data = data
        self.at = 0
        self._more = more
        self.room = room
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        # Indices come one after the other; others cost more.
        self.memo: list[object] = []
        self.rewritten = False
        self._far: dict[str, object] = {}
        self.storages: dict[str | tuple[str, ...], Storage] = {}
        self.globals: dict[tuple[str, str], Global] = {}
        self._kinds: dict[str, tuple[DType | None, int | None]] = {}

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes, which are paid for. Declared lengths are believed as far as
        there are bytes."""
        data = self.data[self.at : self.at + count]
        if len(data) < count:
            raise EOFError
        self.at += count
        self.room -= 4 * count
        return data

    def begin_frame(self, size: int) -> None:
        """So many bytes follow in one piece. Of ``data`` there is then no more than that, and some
        behind it."""
        missing = size + _BEHIND - (len(self.data) - self.at)
        if missing > 0 and self._more is not None:
            self.data = self.data[self.at :] + self._more(missing)
            self.at = 0
        if size > len(self.data) - self.at:
            raise EOFError

    def number(self, nbytes: int, *, signed: bool = False) -> int:
        """The next ``nbytes`` bytes as a number."""
        return int.from_bytes(self.read(nbytes), "little", signed=signed)

    def value(self, size: int, decode: Callable[[bytes], object]) -> object:
        """What the next ``size`` bytes are; what stands for it if they are many."""
        if size <= LARGE:
            return decode(self.read(size))
        if size > len(self.data) - self.at:
            raise EOFError
        self.at += size
        return self.large()

    def line(self) -> bytes:
        """The bytes up to the next end of line."""
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise EOFError
        if end - self.at > LARGE:
            raise pickle.UnpicklingError("a line without end")
        return self.read(end + 1 - self.at)[:-1]

    def spend(self, nbytes: int) -> None:
        self.room -= nbytes
        if self.room < 0:
            self.out_of_memory()

    def out_of_memory(self) -> NoReturn:
        raise pickle.UnpicklingError("its objects take more memory than those of any checkpoint")

    def large(self) -> Opaque:
        """What stands for a text or for bytes that are too large to be of use."""
        return Opaque(_BYTES)

    def pop_mark(self) -> list[object]:
        """What was pushed since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def pop(self, count: int) -> list[object]:
        """What was pushed last, in the order of pushing."""
        if count > len(self.stack):
            raise IndexError
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def push(self, value: object) -> None:
        self.stack.append(value)

    def put(self, index: int, value: object) -> None:
        if 0 <= index < len(self.memo):
            self.memo[index] = value
            self.rewritten = True
        elif index == len(self.memo):
            self.memo.append(value)
        else:
            self._far[str(index)] = value

    def get(self, index: int) -> object:
        if 0 <= index < len(self.memo):
            if (value := self.memo[index]) is INSIDE:
                raise pickle.UnpicklingError("refers to the inside of a tensor")
            return value
        if (name := str(index)) in self._far:
            return self._far[name]
        raise pickle.UnpicklingError(f"Memo value not found at index {index}")

    def recall(self, opcode: bytes) -> object:
        """What an opcode that gets from the memo would push."""
        return self.get(int.from_bytes(opcode[1:], "little"))

    def named(self, module: str, name: str) -> Global:
        """The global of that name, which is not looked up."""
        if module == "__builtin__":
            module = "builtins"
        known = self.globals.get((module, name))
        if known is None:
            self.spend(300)
            known = Global(module, name, BUILDERS.get((module, name)))
            self.globals[module, name] = known
        return known

    def charge_copy(self, args: object) -> None:
        """A call that copies its arguments: copies of one long list cost what they copy."""
        if isinstance(args, tuple):
            for arg in args:
                if isinstance(arg, (dict, list, tuple)):
                    self.spend(100 * len(arg))

    def fill(self, flat: list[object]) -> None:
        """Set items of what is on top: keys and values in turn."""
        target = self.stack[-1]
        if isinstance(target, Opaque):
            target.pairs = target.pairs if target.pairs is not None else {}
            target = target.pairs
        if not isinstance(target, dict):
            raise pickle.UnpicklingError("sets items of something that is no dictionary")
        if len(flat) % 2:
            raise pickle.UnpicklingError("a key without a value")
        self.spend(80 + 50 * len(flat))
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if type(key) is not str:
                key = dict_key(key)
                if isinstance(key, Key):
                    self.spend(200 + 64 * key.cost)
            target[key] = value

    def extend(self, values: list[object]) -> None:
        """Append to what is on top, a list or the stand-in of one."""
        target = self.stack[-1]
        self.spend(16 * len(values))
        if isinstance(target, Opaque):
            target.items = target.items if target.items is not None else []
            target = target.items
        if not isinstance(target, list):
            raise pickle.UnpicklingError("appends to something that is no list")
        target += values

    def persistent(self, saved: object) -> object:
        """The storage of a persistent id: ``('storage', class, key, location, numel, view)``."""
        if not isinstance(saved, tuple) or not saved:
            raise pickle.UnpicklingError("a persistent id that is no tuple")
        # Python 2 wrote bytes.
        tag = saved[0]
        if len(saved) > 1 and tag in ("module", b"module"):
            return saved[1]
        if tag not in ("storage", b"storage") or len(saved) not in (5, 6):
            raise pickle.UnpicklingError("a persistent id that is no storage")
        kind, key, numel = saved[1], saved[2], saved[4]
        if not isinstance(kind, Global):
            raise pickle.UnpicklingError("a storage of no known class")
        if isinstance(key, bytes) and len(key) <= _MAX_STORAGE_KEY:
            key = key.decode("utf-8", "replace")
        if (
            not isinstance(key, str)
            or len(key) > _MAX_STORAGE_KEY
            or type(numel) is not int
            or not 0 <= numel < 1 << 62
        ):
            raise pickle.UnpicklingError("a storage without a key or with an impossible size")
        storage = self.storage(key, kind, numel)
        view = saved[5] if len(saved) == 6 else None
        if view is None:
            return storage
        match view:
            case (_, int(start), int(count)) if start >= 0 and 0 <= count <= numel - start:
                return Storage(
                    key, storage.kind, storage.dtype, storage.itemsize, count, numel, start
                )
        raise pickle.UnpicklingError("a view of a storage that reaches beyond it")

    def storage(self, key: str, of: Global, numel: int) -> Storage:
        """The storage called ``key``, made once."""
        known, kind = self.storages.get(key), of.name
        if known is not None and known.kind == kind and known.root_numel == numel:
            return known
        if kind not in self._kinds:
            self._kinds[kind] = _dtype_and_itemsize(kind)
        dtype, itemsize = self._kinds[kind]
        storage = Storage(key, kind, dtype, itemsize, numel, numel)
        # Two accounts of one storage, both of which are checked later.
        place = key if known is None else (key, kind, str(numel))
        return self.storages.setdefault(place, storage)


def _dtype_and_itemsize(kind: str) -> tuple[DType | None, int | None]:
    if not kind.endswith("Storage"):
        raise pickle.UnpicklingError("a storage of no known class")
    dtype = BY_TORCH_STORAGE.get(kind)
    if kind in ("UntypedStorage", "_UntypedStorage"):
        dtype = BY_NAME["uint8"]
    return dtype, dtype.itemsize if dtype is not None else _OPAQUE_STORAGES.get(kind)
