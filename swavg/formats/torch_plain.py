"""A fresh torch zip with a plain state dict: its pickle is written by hand, without torch."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from swavg.dtypes import DType
from swavg.errors import RequestError
from swavg.formats.base import Task, TensorSpec
from swavg.formats.read import row_major_strides
from swavg.formats.torch_frames import ALIGNMENT, Member, TorchZipLayout, archive_size
from swavg.formats.torch_template import check_written

RECIPE = "swavg.json"


@dataclass(frozen=True)
class TorchPlainLayout(TorchZipLayout):
    """A state dict of contiguous tensors ``specs``."""

    specs: tuple[TensorSpec, ...] = ()

    def verify(self, path: str) -> None:
        from swavg.formats.torch_zip import open_torch_zip

        check_written(path, lambda: open_torch_zip(path, ""), self.specs)


def lay_out_plain(
    tasks: Sequence[Task],
    ties: Sequence[Sequence[str]],
    name: str,
    recipe: bytes | None,
    root: str = "archive",
) -> TorchPlainLayout:
    """A file that ``torch.load(weights_only=True)`` gives back as an OrderedDict of ``tasks``.

    The names of one group of ``ties`` share a storage, with the bytes of the first task of the
    group; a name without a task of its own follows that one. RequestError for dtypes unknown to
    torch.
    """
    group_of = {tied: group for group in ties for tied in group}
    named = {task.name for task in tasks}
    written: list[Task] = []
    keys: dict[int, int] = {}
    entries: list[tuple[TensorSpec, int]] = []
    for task in tasks:
        if task.dtype.bits % 8:
            raise RequestError(f"'{task.name}': torch files have no dtype {task.dtype}")
        group = group_of.get(task.name, ())
        key = keys.get(id(group)) if group else None
        if key is not None and _same_kind(written[key], task):
            entries.append((_spec(task, task.name), key))
            continue
        key = len(written)
        written.append(task)
        entries.append((_spec(task, task.name), key))
        if group:
            keys[id(group)] = key
            entries += [(_spec(task, tied), key) for tied in group if tied not in named]
    members = (
        Member(f"{root}/data.pkl", *_sized(state_dict_pickle(entries))),
        Member(f"{root}/.format_version", *_sized(b"1")),
        Member(f"{root}/.storage_alignment", *_sized(str(ALIGNMENT).encode())),
        Member(f"{root}/byteorder", *_sized(b"little")),
        *(Member(f"{root}/data/{key}", task.nbytes) for key, task in enumerate(written)),
        Member(f"{root}/version", *_sized(b"3\n")),
        *recipe_member(root, recipe),
    )
    specs = tuple(spec for spec, _ in entries)
    return TorchPlainLayout(name, archive_size(members), tuple(written), members, specs=specs)


def recipe_member(root: str, recipe: bytes | None) -> tuple[Member, ...]:
    """The record that says how the file was made, if it has one."""
    return () if recipe is None else (Member(f"{root}/{RECIPE}", *_sized(recipe)),)


def _sized(body: bytes) -> tuple[int, bytes]:
    return len(body), body


def _spec(task: Task, name: str) -> TensorSpec:
    return TensorSpec(name, task.dtype, task.shape)


def _same_kind(first: Task, other: Task) -> bool:
    return (first.dtype, first.shape) == (other.dtype, other.shape)


def state_dict_pickle(entries: Sequence[tuple[TensorSpec, int]]) -> bytes:
    """Protocol 2, as torch.save writes an OrderedDict of contiguous tensors: ``(spec, key of the
    storage)`` per entry."""
    return b"".join(_pickled(entries))


def _pickled(entries: Sequence[tuple[TensorSpec, int]]) -> Iterator[bytes]:
    memo: dict[bytes, int] = {}

    def once(opcodes: bytes) -> bytes:
        """``opcodes`` the first time, then a reference to what they made."""
        if opcodes in memo:
            return b"h" + bytes([memo[opcodes]])
        memo[opcodes] = len(memo)
        return opcodes + b"q" + bytes([memo[opcodes]])

    ordered = b"ccollections\nOrderedDict\n"
    yield b"\x80\x02" + once(ordered) + b")R("
    for spec, key in entries:
        dtype = spec.dtype
        typed = dtype.torch_storage is not None
        storage = (
            f"ctorch\n{dtype.torch_storage}\n" if typed else "ctorch.storage\nUntypedStorage\n"
        )
        function = "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3"
        yield _text(spec.name)
        yield once(f"ctorch._utils\n{function}\n".encode()) + b"(("
        yield once(_text("storage")) + once(storage.encode()) + _text(str(key))
        yield once(_text("cpu")) + _int(spec.numel if typed else spec.nbytes) + b"tQK\0"
        yield _tuple(spec.shape) + _tuple(row_major_strides(spec.shape))
        yield b"\x89" + once(ordered) + b")R"
        yield (b"" if typed else once(_dtype(dtype))) + b"tR"
    yield b"u."


def _dtype(dtype: DType) -> bytes:
    return f"ctorch\n{dtype.name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    if value < 1 << 8:
        return b"K" + bytes([value])
    if value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _tuple(values: tuple[int, ...]) -> bytes:
    if not values:
        return b")"
    body = b"".join(map(_int, values))
    if len(values) <= 3:
        return body + (b"\x85", b"\x86", b"\x87")[len(values) - 1]
    return b"(" + body + b"t"
