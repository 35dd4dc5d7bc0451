"""The pickle ``.metadata``, written without torch: protocol 4, of torch's own classes, opcode for
opcode as Python pickles them, in frames; so that it is read again in runs."""

from __future__ import annotations

import struct

from swavg.formats.dcp.saved import OLD_PROPERTIES, Place, Saved, SavedTensor
from swavg.formats.tensors import Shape

_CLASSES = "torch.distributed.checkpoint.metadata"
_FILES = "torch.distributed.checkpoint.filesystem"
_VERSION = "1.0.0"
_FRAME = 1 << 16
_SHORT = 1 << 8
_MOST_ALONE = 3
"""Numbers for whose tuple there is an opcode."""


def pickled(saved: Saved) -> bytes:
    """What :func:`swavg.formats.dcp.metadata.read_metadata` reads as ``saved``."""
    writer = _Writer(saved)
    writer.metadata()
    writer.end_frame()
    return bytes(writer.frames)


class _Writer:
    """Appends opcodes to ``out``: every method pushes one value (``begin`` and ``b"ub"`` are around
    the attributes of an object)."""

    def __init__(self, saved: Saved) -> None:
        self.saved = saved
        self.frames = bytearray(b"\x80\x04")
        self.out = bytearray()
        self._places: dict[tuple[str, ...], int] = {}
        self._count = 0

    def metadata(self) -> None:
        saved = self.saved
        self.new(_CLASSES, "Metadata")
        self.begin()
        self.text("state_dict_metadata")
        self.begin()
        for name, tensor in saved.tensors.items():
            self.text(name)
            self.tensor(tensor)
            self.end_frame(_FRAME)
        for name in saved.objects:
            self.text(name)
            self.new(_CLASSES, "BytesStorageMetadata")
        self.out += b"u"
        self.text("planner_data")
        self.begin()
        for name, keys in saved.paths.items():
            self.text(name)
            self.out += b"("
            for key in keys:
                self.text(key) if isinstance(key, str) else self.number(key)
            self.out += b"t"
            self.memoize()
            self.end_frame(_FRAME)
        self.out += b"u"
        self.text("storage_data")
        self.begin()
        for name, tensor in saved.tensors.items():
            for index, chunk in enumerate(tensor.chunks):
                self.index(name, index, chunk.start)
                self.place(chunk.place)
                self.end_frame(_FRAME)
        for name, place in saved.objects.items():
            self.index(name, None, None)
            self.place(place)
            self.end_frame(_FRAME)
        self.out += b"u"
        self.text("storage_meta")
        self.out += b"N"
        self.text("version")
        self.text(_VERSION)
        self.out += b"ub."

    def end_frame(self, size: int = 0) -> None:
        """Begin another frame if this one has at least ``size`` bytes."""
        if len(self.out) >= size:
            self.frames += b"\x95" + struct.pack("<Q", len(self.out)) + self.out
            self.out.clear()

    def memoize(self) -> None:
        self.out += b"\x94"
        self._count += 1

    def begin(self, empty: bytes = b"}") -> None:
        self.out += empty
        self.memoize()
        self.out += b"("

    def tensor(self, tensor: SavedTensor) -> None:
        self.new(_CLASSES, "TensorStorageMetadata")
        self.begin()
        self.text("properties")
        module = OLD_PROPERTIES if self.saved.old else _CLASSES
        self.new(module, "TensorProperties")
        self.out += b"("
        self.named("torch", tensor.dtype)
        self.named("torch.serialization", "_get_layout")
        self.text("torch.strided")
        # Not requiring a gradient; contiguous; not pinned.
        self.out += b"\x85R\x89"
        self.named(module, "MEM_FORMAT_ENCODING" if self.saved.old else "_MEM_FORMAT_ENCODING")
        self.out += b"K\0\x85R\x89tb"
        self.text("size")
        self.size(tensor.shape)
        self.text("chunks")
        self.begin(b"]")
        for chunk in tensor.chunks:
            self.new(_CLASSES, "ChunkStorageMetadata")
            self.begin()
            self.text("offsets")
            self.size(chunk.start)
            self.text("sizes")
            self.size(chunk.shape)
            self.out += b"ub"
        self.out += b"eub"

    def index(self, name: str, index: int | None, start: Shape | None) -> None:
        self.new(_CLASSES, "MetadataIndex")
        self.begin()
        self.text("fqn")
        self.text(name)
        self.text("index")
        self.number(index)
        if start is not None:
            self.text("offset")
            self.size(start)
        self.out += b"ub"

    def place(self, place: Place) -> None:
        self.new(_FILES, "_StorageInfo")
        self.begin()
        self.text("relative_path")
        self.text(self.saved.files[place.file])
        self.text("offset")
        self.number(place.offset)
        self.text("length")
        self.number(place.length)
        if place.transforms:
            self.text("transform_descriptors")
            self.begin(b"]")
            for transform in place.transforms:
                self.text(transform)
            self.out += b"e"
        self.out += b"ub"

    def new(self, module: str, name: str) -> None:
        """An object of this class, without attributes."""
        self.named(module, name)
        self.out += b")\x81"
        self.memoize()

    def named(self, module: str, name: str) -> None:
        if not self.known((module, name)):
            self.text(module)
            self.text(name)
            self.out += b"\x93"
            self.keep((module, name))

    def size(self, shape: Shape) -> None:
        self.named("torch", "Size")
        if len(shape) > _MOST_ALONE:
            self.out += b"("
        for extent in shape:
            self.number(extent)
        if not shape:
            self.out += b")"
        else:
            self.out += b"\x85\x86\x87"[len(shape) - 1 :][:1] or b"t"
            self.memoize()
        self.out += b"\x85"
        self.memoize()
        self.out += b"R"
        self.memoize()

    def text(self, text: str) -> None:
        if not self.known((text,)):
            data = text.encode("utf-8", "surrogatepass")
            short = len(data) < _SHORT
            size = bytes([len(data)]) if short else struct.pack("<I", len(data))
            self.out += (b"\x8c" if short else b"X") + size + data
            self.keep((text,))

    def number(self, value: int | None) -> None:
        if value is None:
            self.out += b"N"
        elif value < 1 << 8:
            self.out += b"K" + bytes([value])
        elif value < 1 << 31:
            self.out += b"J" + struct.pack("<i", value)
        else:
            self.out += b"\x8a\x08" + struct.pack("<q", value)

    def known(self, key: tuple[str, ...]) -> bool:
        """Whether what ``key`` stands for was there before; then it is pushed again."""
        place = self._places.get(key)
        if place is not None:
            short = place < _SHORT
            self.out += b"h" + bytes([place]) if short else b"j" + struct.pack("<I", place)
        return place is not None

    def keep(self, key: tuple[str, ...]) -> None:
        self._places[key] = self._count
        self.memoize()
