"""TensorFlow's V2 bundles, read and written apart from swavg, in as few lines as they take."""

import struct

import google_crc32c
import numpy as np

from swavg.dtypes import BY_NAME

MAGIC = 0xDB4775248B80FB57
NUMBERS = {
    "float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "complex64": 8,
    "int64": 9, "bool": 10, "bfloat16": 14, "uint16": 17, "complex128": 18, "float16": 19,
    "uint32": 22, "uint64": 23, "float8_e5m2": 24, "float8_e4m3fn": 25, "float8_e4m3fnuz": 26,
    "float8_e5m2fnuz": 28,
}  # fmt: skip
STRING = 7


def masked(data):
    crc = google_crc32c.value(bytes(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def number(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def text(field, data):
    return bytes([field << 3 | 2]) + number(len(data)) + data


def entry(kind, shape=(), shard=0, offset=0, data=b"", crc=None, size=None, slices=()):
    """An entry of an index; ``slices`` have start and length in each dimension."""
    dims = b"".join(text(2, b"\x08" + number(extent)) for extent in shape)
    out = b"\x08" + number(kind) + text(2, dims)
    out += b"\x18" + number(shard) + b"\x20" + number(offset)
    out += b"\x28" + number(len(data) if size is None else size)
    for extents in slices:
        parts = (b"\x08" + number(first) + b"\x10" + number(count) for first, count in extents)
        out += text(7, b"".join(text(1, part) for part in parts))
    return out + b"\x35" + struct.pack("<I", masked(data) if crc is None else crc)


def block(pairs):
    """Entries without common beginnings, and what follows a block."""
    out = b"".join(
        b"\0" + number(len(key)) + number(len(value)) + key + value for key, value in pairs
    )
    return out + struct.pack("<2I", 0, 1)


def index(entries, shards=1, header=None, kind=b"\0", raw=None):
    """The file of these entries, in one block (which ``raw`` replaces)."""
    header = b"\x08" + number(shards) + b"\x1a\x02\x08\x01" if header is None else header
    out, handles = b"", []
    last = max(entries, default=b"")
    for pairs in ([(b"", header), *sorted(entries.items())], [], None):
        data = block([(last, handles[0])] if pairs is None else pairs)
        data = raw if raw is not None and not handles else data
        handles.append(number(len(out)) + number(len(data)))
        out += data + kind + struct.pack("<I", masked(data + kind))
    return out + (handles[1] + handles[2]).ljust(40, b"\0") + struct.pack("<Q", MAGIC)


def string(*words):
    """The bytes of a tensor of strings, and its checksum, which is not that of the bytes."""
    lengths = b"".join(struct.pack("<I", len(word)) for word in words)
    head = struct.pack("<I", masked(lengths))
    data = b"".join(map(number, map(len, words))) + head + b"".join(words)
    return data, masked(lengths + head + b"".join(words))


def write(folder, tensors, words=None, name="ckpt"):
    """A checkpoint of arrays, and of tensors of one string, in a folder."""
    folder.mkdir(exist_ok=True)
    data, entries = b"", {}
    for key, word in (words or {}).items():
        own, crc = string(word)
        entries[key.encode()] = entry(STRING, (), 0, len(data), own, crc)
        data += own
    for key, array in tensors.items():
        own = np.ascontiguousarray(array).tobytes()
        kind = NUMBERS[array.dtype.name]
        entries[key.encode()] = entry(kind, array.shape, 0, len(data), own)
        data += own
    (folder / f"{name}.data-00000-of-00001").write_bytes(data)
    (folder / f"{name}.index").write_bytes(index(entries))


def data_file(prefix, shard, shards):
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")


def varints(data, count):
    """The numbers at the beginning of ``data``, and how many bytes they take."""
    at, found = 0, []
    while len(found) < count:
        size = next(size for size in range(1, 11) if data[at + size - 1] < 128)
        found.append(sum((data[at + i] & 127) << 7 * i for i in range(size)))
        at += size
    return found, at


def fields(data):
    """Number and value of the fields of a message."""
    while data:
        (tag,), at = varints(data, 1)
        data = data[at:]
        if tag & 7 == 5:
            value, size = data[:4], 4
        else:
            (value,), size = varints(data, 1)
            if tag & 7 == 2:
                value, size = data[size : size + value], size + value
        yield tag >> 3, value
        data = data[size:]


def read_index(path):
    """Values by key."""
    file = path.read_bytes()
    assert file[-8:] == struct.pack("<Q", MAGIC)
    place = varints(file[-48:-8], 4)[0][2:]
    found = {}
    for _, handle in pairs_of(file, *place):
        for key, value in pairs_of(file, *varints(handle, 2)[0]):
            assert not found or key > max(found)
            found[key] = value
    return found


def pairs_of(file, start, size):
    data = file[start : start + size]
    (crc,) = struct.unpack_from("<I", file, start + size + 1)
    assert masked(file[start : start + size + 1]) == crc
    (count,) = struct.unpack("<I", data[-4:])
    restarts = struct.unpack(f"<{count}I", data[-4 - 4 * count : -4])
    at, key = 0, b""
    while at < len(data) - 4 - 4 * count:
        (shared, own, length), size = varints(data[at:], 3)
        assert at not in restarts or shared == 0
        at += size
        key = key[:shared] + data[at : at + own]
        at += own + length
        yield key, data[at - length : at]


def read(prefix):
    """All undivided tensors as arrays (strings as bytes) by key, every checksum compared."""
    found = {}
    for key, value in read_index(prefix.with_name(prefix.name + ".index")).items():
        if not key:
            assert dict(fields(value))[1] == 1
            continue
        if key.startswith(b"\0") or any(at == 7 for at, _ in fields(value)):
            continue  # A slice, or what is divided into some.
        facts = {3: 0, 4: 0, 5: 0, **dict(fields(value))}
        shape = [dict(fields(each)).get(1, 0) for at, each in fields(facts[2]) if at == 2]
        file = prefix.with_name(f"{prefix.name}.data-{facts[3]:05d}-of-00001")
        data = file.read_bytes()[facts[4] : facts[4] + facts[5]]
        if facts[1] == STRING:
            found[key.decode()] = data
            continue
        assert masked(data) == struct.unpack("<I", facts[6])[0], key
        name = next(name for name, kind in NUMBERS.items() if kind == facts[1])
        found[key.decode()] = np.frombuffer(data, BY_NAME[name].numpy()).reshape(shape)
    return found
