"""Distributed checkpoints that are damaged, unfinished, or made to do harm."""

from __future__ import annotations

import math
import pickle
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import swavg
from swavg.dtypes import BY_NAME
from swavg.errors import InputError
from swavg.formats.dcp.chunk_zip import ChunkZip
from swavg.formats.dcp.pickled import pickled
from swavg.formats.dcp.saved import Chunk, Place, Saved, SavedTensor

FLOAT = BY_NAME["float32"]
FILE = "__0_0.distcp"


def zipped(array):
    """The chunk of an array of float32."""
    chunk = ChunkZip(FLOAT, array.shape)
    # The readers of torch and of swavg look at no checksum.
    return chunk.head + array.tobytes() + chunk.tail(0, "")


def saved(folder: Path, boxes, shape=(4, 3), *, dtype="float32", name=FILE):
    """A folder of one tensor of these boxes (where each starts, and its shape)."""
    folder.mkdir(exist_ok=True)
    whole = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    data, chunks = b"", []
    for start, extent in boxes:
        part = np.zeros(extent, np.float32)
        cut = tuple(slice(a, a + n) for a, n in zip(start, extent, strict=True))
        if whole[cut].shape == extent:
            part[...] = whole[cut]
        chunk = zipped(part)
        chunks.append(Chunk(start, extent, Place(0, len(data), len(chunk))))
        data += chunk
    (folder / FILE).write_bytes(data)
    content = Saved((name,), {"w": SavedTensor(dtype, shape, tuple(chunks))}, {}, {})
    rewrite(folder, content)
    return content


def rewrite(folder, content):
    (folder / ".metadata").write_bytes(pickled(content))


def refused(folder, problem):
    started = time.process_time()
    with pytest.raises(InputError) as caught:
        swavg.open_checkpoint(folder)
    assert problem in str(caught.value)
    assert time.process_time() - started < 5


ROWS = [((0, 0), (2, 3)), ((2, 0), (2, 3))]


def test_boxes_in_any_order_are_one_tensor(tmp_path):
    saved(tmp_path / "a", [((2, 1), (2, 2)), ((0, 0), (2, 3)), ((2, 0), (2, 1)), ((4, 0), (0, 3))])
    expected = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(swavg.open_checkpoint(tmp_path / "a").read("w"), expected)


def test_several_ranks_without_rows_are_no_fault(tmp_path):
    content = saved(tmp_path / "a", [*ROWS, ((4, 0), (0, 3))])
    *rows, empty = content.tensors["w"].chunks
    chunks = (*rows, empty, empty)
    rewrite(tmp_path / "a", replace(content, tensors={"w": SavedTensor("float32", (4, 3), chunks)}))
    expected = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(swavg.open_checkpoint(tmp_path / "a").read("w"), expected)


@pytest.mark.parametrize(
    ("boxes", "problem"),
    [
        (ROWS[:1], "its chunks leave out 6 of 12 elements"),
        ([*ROWS, ((1, 0), (1, 3))], "its chunks overlap"),
        ([ROWS[0], ((1, 0), (2, 3))], "its chunks overlap"),
        ([ROWS[0], ((2, 0), (3, 3))], "a chunk reaches beyond it"),
        ([ROWS[0], ((2,), (6,))], "another number of dimensions"),
        ([], "its chunks leave out 12 of 12 elements"),
        ([ROWS[0], ROWS[0]], "two chunks of 'w' begin at the same element"),
    ],
)
def test_boxes_that_do_not_tile_are_refused(tmp_path, boxes, problem):
    saved(tmp_path / "a", boxes)
    refused(tmp_path / "a", problem)


@pytest.mark.parametrize("name", ["../evil.distcp", "/etc/passwd", "a/b", "..", "", "a\0b"])
def test_files_outside_the_folder_are_refused(tmp_path, name):
    (tmp_path / "evil.distcp").write_bytes(zipped(np.zeros((4, 3), np.float32)))
    saved(tmp_path / "a", [((0, 0), (4, 3))], name=name)
    refused(tmp_path / "a", "outside its folder")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_what_a_pickle_names_is_not_run(tmp_path):
    folder, mark = tmp_path / "a", tmp_path / "was-here"
    saved(folder, [((0, 0), (4, 3))])
    (folder / ".metadata").write_bytes(pickle.dumps(Evil(str(mark)), protocol=4))
    refused(folder, "io.open, which no distributed checkpoint does")
    assert not mark.exists()


def test_a_folder_without_metadata_is_not_finished(tmp_path):
    saved(tmp_path / "a", ROWS)
    (tmp_path / "a/.metadata").unlink()
    refused(tmp_path / "a", "this checkpoint is not finished")


def test_data_that_is_cut_short_is_refused(tmp_path):
    saved(tmp_path / "a", ROWS)
    data = (tmp_path / "a" / FILE).read_bytes()
    (tmp_path / "a" / FILE).write_bytes(data[:-1])
    refused(tmp_path / "a", "truncated: 'w' ends at byte")
    (tmp_path / "a" / FILE).rename(tmp_path / "a/__1_0.distcp")
    refused(tmp_path / "a", "is incomplete: __0_0.distcp is missing")


def test_objects_that_lie_beyond_their_file_are_refused(tmp_path):
    content = saved(tmp_path / "a", ROWS)
    rewrite(tmp_path / "a", replace(content, objects={"lr": Place(0, 1 << 40, 10)}))
    refused(tmp_path / "a", "truncated: 'lr' ends at byte")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"offset": 1}, "corrupt"),
        ({"length": 21}, "in 21 bytes, no zip"),
        ({"length": 100}, "the zip directory at its end is missing"),
        ({"transforms": ("zstd",)}, "is stored with zstd, which is not read"),
    ],
)
def test_places_that_lie_are_refused(tmp_path, change, problem):
    content = saved(tmp_path / "a", [((0, 0), (4, 3))])
    (chunk,) = content.tensors["w"].chunks
    place = chunk.place._replace(**change)
    if "offset" in change:
        place = place._replace(length=place.length - 1)
    tensor = replace(content.tensors["w"], chunks=(chunk._replace(place=place),))
    rewrite(tmp_path / "a", replace(content, tensors={"w": tensor}))
    refused(tmp_path / "a", problem)


def test_chunks_of_another_dtype_or_shape_are_refused(tmp_path):
    saved(tmp_path / "a", [((0, 0), (4, 3))], dtype="int32")
    refused(tmp_path / "a", "'w' is float32 (4, 3) there, and int32 (4, 3) going by the metadata")
    content = saved(tmp_path / "b", [((0, 0), (4, 3))])
    (chunk,) = content.tensors["w"].chunks
    tensor = SavedTensor("float32", (3, 4), (chunk._replace(shape=(3, 4)),))
    rewrite(tmp_path / "b", replace(content, tensors={"w": tensor}))
    refused(tmp_path / "b", "'w' is float32 (4, 3) there, and float32 (3, 4)")
    saved(tmp_path / "c", [((0, 0), (4, 3))], dtype="quint4x2")
    refused(tmp_path / "c", "'w' is quint4x2, which swavg does not know")


def test_a_chunk_unlike_the_first_of_its_shape_is_read_by_itself(tmp_path):
    content = saved(tmp_path / "a", ROWS)
    data = bytearray((tmp_path / "a" / FILE).read_bytes())
    second = content.tensors["w"].chunks[1].place.offset
    at = data.index(b"FloatStorage", second)
    data[at : at + 12] = b"OtherStorage"
    (tmp_path / "a" / FILE).write_bytes(data)
    refused(tmp_path / "a", "a tensor of OtherStorage")


def test_chunks_that_share_bytes_are_refused(tmp_path):
    content = saved(tmp_path / "a", ROWS)
    first, second = content.tensors["w"].chunks
    second = second._replace(place=first.place)
    tensor = replace(content.tensors["w"], chunks=(first, second))
    rewrite(tmp_path / "a", replace(content, tensors={"w": tensor}))
    refused(tmp_path / "a", "shares its bytes with another")


def test_impossible_shapes_take_no_time(tmp_path):
    content = saved(tmp_path / "a", ROWS)
    place = content.tensors["w"].chunks[0].place
    huge = (1 << 61,) * 24
    many = tuple(
        Chunk((number,) * 24, tuple(extent - number - 1 for extent in huge), place)
        for number in range(40)
    )
    rewrite(tmp_path / "a", replace(content, tensors={"w": SavedTensor("float32", huge, many)}))
    refused(tmp_path / "a", "it is cut into too many chunks")
    many = tuple(Chunk((number,), (1,), place) for number in range(20_000))
    tensor = SavedTensor("float32", (20_001,), many)
    rewrite(tmp_path / "a", replace(content, tensors={"w": tensor}))
    refused(tmp_path / "a", "its chunks leave out 1 of 20,001 elements")
