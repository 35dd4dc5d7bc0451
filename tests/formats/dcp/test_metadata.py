"""The metadata of many ranks, as torch's own classes are pickled: runs of records and the rest."""

from __future__ import annotations

import pickle
import random
import resource
import subprocess
import sys
import time

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from swavg.errors import InputError
from swavg.formats.dcp import metadata as reader
from swavg.formats.dcp.metadata import read_metadata
from swavg.formats.dcp.pickled import pickled
from swavg.formats.dcp.runs import Runs

SHAPES = ((64,), (64, 3), (64, 300, 70_000), (64, 2, 2, 2), (64, 2, 3, 4, 5, 6), ())
NAMES = ("weight", "größe", "long" * 80, "b")


def from_another_rank(text):
    """Another object of the same text."""
    return text[:1] + text[1:]


def metadata(tensors, ranks, offset=0):
    """What the coordinator of so many ranks writes."""
    described, stored = {}, {}
    names = [f"model.layers.{number}.{NAMES[number % 4]}" for number in range(tensors)]
    shapes = {name: SHAPES[number % len(SHAPES)] for number, name in enumerate(names)}
    boxes = {}
    for name, shape in shapes.items():
        rows, rest = shape[:1], shape[1:]
        each = -(-rows[0] // ranks) if rows else 0
        starts = [(rank * each, *(0 for _ in rest)) for rank in range(ranks if rows else 1)]
        boxes[name] = [(start, (each, *rest) if rows else ()) for start in starts]
        described[name] = TensorStorageMetadata(
            TensorProperties(dtype=torch.bfloat16),
            torch.Size(shape),
            [ChunkStorageMetadata(*map(torch.Size, box)) for box in boxes[name]],
        )
    for rank in range(ranks):
        at, file = offset, f"__{rank}_0.distcp"
        for name in names:
            if rank < len(boxes[name]):
                start = torch.Size(boxes[name][rank][0])
                index = MetadataIndex(from_another_rank(name), start, rank)
                stored[index] = _StorageInfo(file, at, 1577 + rank)
                at += 1577 + rank
        described[f"rng.{rank}"] = BytesStorageMetadata()
        stored[MetadataIndex(f"rng.{rank}")] = _StorageInfo(file, at, 99)
    planned = {name: tuple(name.split(".", 1)) for name in names}
    return Metadata(described, planned, stored, StorageMeta(checkpoint_id="/a/b"))


def facts(saved):
    """All that was read, in plain values."""
    tensors = {
        name: (tensor.dtype, tensor.shape, [tuple(chunk) for chunk in tensor.chunks])
        for name, tensor in saved.tensors.items()
    }
    return saved.files, tensors, dict(saved.objects), dict(saved.paths)


def write(folder, content, protocol=4):
    folder.mkdir(exist_ok=True)
    with open(folder / ".metadata", "wb") as file:
        pickle.dump(content, file, protocol)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("tensors", "ranks", "offset"), [(1, 1, 0), (5, 64, 1 << 33), (60, 1, 0), (30, 16, 200)]
)
def test_it_is_what_torch_reads(tmp_path, tensors, ranks, offset, protocol):
    content = metadata(tensors, ranks, offset)
    write(tmp_path, content, protocol)
    saved = read_metadata(str(tmp_path))
    where = {(key.fqn, key.offset): value for key, value in content.storage_data.items()}
    objects = {
        n for n, of in content.state_dict_metadata.items() if type(of) is BytesStorageMetadata
    }
    assert set(saved.objects) == objects
    assert set(saved.tensors) == set(content.state_dict_metadata) - objects
    for name, place in saved.objects.items():
        own = where[name, None]
        assert (saved.files[place.file], place.offset) == (own.relative_path, own.offset)
    for name, tensor in saved.tensors.items():
        described = content.state_dict_metadata[name]
        assert (tensor.dtype, tensor.shape) == ("bfloat16", described.size)
        for chunk, box in zip(tensor.chunks, described.chunks, strict=True):
            assert (chunk.start, chunk.shape) == (box.offsets, box.sizes)
            own = where[name, box.offsets]
            place = (saved.files[chunk.place.file], *chunk.place[1:3])
            assert place == (own.relative_path, own.offset, own.length)
    assert saved.paths == content.planner_data


def test_what_one_process_saves_shares_its_sizes(tmp_path):
    size = torch.Size((0, 0))
    shape = torch.Size((2, 3))
    described, stored = {}, {}
    for number in range(40):
        chunk = ChunkStorageMetadata(size, shape)
        described[f"w{number}"] = TensorStorageMetadata(TensorProperties(), shape, [chunk])
        stored[MetadataIndex(f"w{number}", size)] = _StorageInfo("__0_0.distcp", number, 5)
    write(tmp_path, Metadata(described, {}, stored))
    saved = read_metadata(str(tmp_path))
    for number in range(40):
        (chunk,) = saved.tensors[f"w{number}"].chunks
        assert tuple(chunk) == ((0, 0), (2, 3), (0, number, 5, ()))


def test_damaged_runs_are_read_as_their_opcodes_are(tmp_path, monkeypatch):
    write(tmp_path, metadata(4, 8))
    path = tmp_path / ".metadata"
    whole = path.read_bytes()
    chance = random.Random(1)
    cases = []
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole) // 4, len(whole))] = chance.randrange(256)
        cases.append(damaged)

    def outcomes():
        for case in cases:
            path.write_bytes(case)
            try:
                yield facts(read_metadata(str(tmp_path)))
            except InputError:
                yield None

    fast = list(outcomes())
    monkeypatch.setattr(Runs, "read_on", lambda *_: None)
    assert fast == list(outcomes())
    assert any(case is not None for case in fast)


def test_frames_that_lie_are_refused(tmp_path):
    write(tmp_path, metadata(5, 64))
    path = tmp_path / ".metadata"
    data = bytearray(path.read_bytes())
    for size in (1 << 63, 1 << 40, len(data), 5):
        data[3:11] = size.to_bytes(8, "little")
        path.write_bytes(data)
        with pytest.raises(InputError, match="pickle"):
            read_metadata(str(tmp_path))


HUGE_FRAME = b"\x80\x04\x95" + (49 << 20).to_bytes(8, "little")


@pytest.mark.parametrize("beginning", [b"\x80\x02", HUGE_FRAME])
def test_large_pieces_are_refused_unread(tmp_path, beginning):
    with open(tmp_path / ".metadata", "wb") as file:
        file.write(beginning)
        file.truncate(50 << 20)
    with pytest.raises(InputError, match="larger than 48 MiB"):
        read_metadata(str(tmp_path))


def test_a_cut_is_refused_wherever_it_is(tmp_path):
    write(tmp_path, metadata(3, 4))
    path = tmp_path / ".metadata"
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(InputError):
            read_metadata(str(tmp_path))


def test_what_is_written_is_read_in_runs(tmp_path, monkeypatch):
    write(tmp_path, metadata(12, 32, 1 << 33))
    saved = read_metadata(str(tmp_path))
    data = pickled(saved)
    (tmp_path / ".metadata").write_bytes(data)
    assert facts(read_metadata(str(tmp_path))) == facts(saved)
    # Without runs 12 x 32 chunks are some 27,000 opcodes.
    monkeypatch.setattr(reader, "_MAX_OPCODES", 12_000)
    assert facts(read_metadata(str(tmp_path))) == facts(saved)
    # And torch, which unpickles it, has the same.
    content = pickle.loads(data)
    assert list(content.state_dict_metadata) == [*saved.tensors, *saved.objects]
    assert len(content.storage_data) == len(list(saved.everything()))


@pytest.mark.slow
def test_a_hundred_thousand_chunks_take_little(tmp_path):
    write(tmp_path, metadata(1600, 64))
    code = (
        "import sys; from swavg.formats.dcp.metadata import read_metadata;"
        "saved = read_metadata(sys.argv[1]);"
        "print(sum(len(tensor.chunks) for tensor in saved.tensors.values()),"
        " *(line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    printed = subprocess.check_output([sys.executable, "-c", code, str(tmp_path)], text=True)
    chunks, memory = map(int, printed.split())
    assert chunks == 1600 * 64 - 266 * 63
    assert memory < 96 << 10
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 3


def test_a_list_of_chunks_that_many_tensors_share_takes_no_time(tmp_path):
    size = torch.Size((1,))
    # All empty, as ranks without rows have them: one place is enough.
    shared = [ChunkStorageMetadata(size, torch.Size((0,))) for _ in range(2000)]
    described, stored = {}, {}
    for number in range(2000):
        described[str(number)] = TensorStorageMetadata(TensorProperties(), size, shared)
        stored[MetadataIndex(str(number), size)] = _StorageInfo("__0_0.distcp", 0, 5)
    write(tmp_path, Metadata(described, {}, stored))
    started = time.process_time()
    with pytest.raises(InputError, match="has more than 1,400,000 chunks"):
        read_metadata(str(tmp_path))
    assert time.process_time() - started < 5
