"""Reading through strides: any view is read as NumPy has it, with few reads."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import load, planned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import swavg
from swavg import Resources
from swavg.dtypes import BY_NAME
from swavg.formats.gather import gather, unpack_codes
from swavg.formats.strides import regions, row_major_strides
from swavg.formats.tensors import Box, Tensor, TensorSpec
from swavg.storage.pool import Pool
from swavg.storage.sources import Memory

RELAXED = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FLOAT = BY_NAME["float32"]


class Counting(Memory):
    """Bytes of this process that count how often, and how much, is read."""

    def __init__(self, data: bytes) -> None:
        super().__init__("data", memoryview(data))
        object.__setattr__(self, "reads", [])

    def read_into(self, offset: int, out: memoryview) -> None:
        self.reads.append(len(out))  # type: ignore[attr-defined]
        assert 0 <= offset <= offset + len(out) <= self.size
        super().read_into(offset, out)


def read(source: Any, tensor: Tensor, start: int, stop: int) -> np.ndarray[Any, Any]:
    out = bytearray(tensor.spec.dtype.nbytes(stop - start))
    with Pool() as pool:
        gather(pool, (source,), tensor, start, stop, memoryview(out))
    return np.frombuffer(out, np.float32)


def view(array: np.ndarray[Any, Any], base: np.ndarray[Any, Any]) -> Tensor:
    """A NumPy view of ``base``, which a source holds from its first byte on, as a tensor."""
    offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    strides = tuple(step // array.itemsize for step in array.strides)
    spec = TensorSpec("x", FLOAT, array.shape)
    return Tensor(spec, (Box(0, offset, (0,) * array.ndim, array.shape, strides),), array.shape)


@st.composite
def views(draw: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """An array and some view of it: permuted, cut, stepped, broadcast."""
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    base = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    found = base.transpose(draw(st.permutations(range(len(shape)))))
    cuts = []
    for extent in found.shape:
        start = draw(st.integers(0, extent - 1))
        cuts.append(slice(start, draw(st.integers(start + 1, extent)), draw(st.integers(1, 3))))
    found = found[tuple(cuts)]
    if draw(st.booleans()):
        found = np.broadcast_to(found, (draw(st.integers(1, 3)), *found.shape))
    return base, found


@given(pair=views(), data=st.data())
@RELAXED
def test_any_range_of_any_view_is_read_as_numpy_has_it(pair: Any, data: Any) -> None:
    base, array = pair
    start = data.draw(st.integers(0, array.size))
    stop = data.draw(st.integers(start, array.size))
    found = read(Counting(base.tobytes()), view(array, base), start, stop)
    np.testing.assert_array_equal(found, array.reshape(-1)[start:stop])


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        # As long as its elements are many, and yet not packed: a column that is broadcast ...
        ((2, 2), (3, 0)),
        # ... and rows that overlap.
        ((3, 3), (2, 2)),
        ((2, 3, 2), (8, 1, 1)),
    ],
)
def test_a_view_as_long_as_a_packed_one_is_read_by_its_strides(
    shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    base = np.arange(16, dtype=np.float32)
    array = np.lib.stride_tricks.as_strided(base, shape, [4 * step for step in strides])
    found = read(Counting(base.tobytes()), view(array, base), 0, array.size)
    np.testing.assert_array_equal(found, array.reshape(-1))


@st.composite
def tilings(draw: Any) -> tuple[tuple[int, ...], list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """A shape, and the start and shape of boxes that tile it."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    cuts = [sorted({0, n, *draw(st.lists(st.integers(1, n), max_size=2))}) for n in shape]
    boxes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())]
    for edges in cuts:
        boxes = [
            ((*start, low), (*size, high - low))
            for start, size in boxes
            for low, high in itertools.pairwise(edges)
        ]
    return shape, boxes


@given(tiling=tilings(), data=st.data())
@RELAXED
def test_a_tensor_of_several_boxes_is_read_whole(tiling: Any, data: Any) -> None:
    shape, places = tiling
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    content, boxes = b"", []
    for start, size in data.draw(st.permutations(places)):
        part = array[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
        turned = data.draw(st.booleans())
        strides = tuple(reversed(row_major_strides(size[::-1]))) if turned else None
        boxes.append(Box(0, len(content), start, size, strides))
        content += (part.T if turned else part).tobytes()
    tensor = Tensor(TensorSpec("x", FLOAT, shape), tuple(boxes), shape)
    start = data.draw(st.integers(0, array.size))
    stop = data.draw(st.integers(start, array.size))
    found = read(Counting(content), tensor, start, stop)
    np.testing.assert_array_equal(found, array.reshape(-1)[start:stop])


@given(
    shape=st.lists(st.integers(1, 6), max_size=4).map(tuple),
    data=st.data(),
)
@RELAXED
def test_a_range_is_a_few_boxes(shape: tuple[int, ...], data: Any) -> None:
    size = math.prod(shape)
    start = data.draw(st.integers(0, size))
    stop = data.draw(st.integers(start, size))
    numbers = np.arange(size).reshape(shape)
    found = [
        numbers[tuple(slice(first, first + count) for first, count in box)].reshape(-1)
        for box in regions(shape, start, stop)
    ]
    assert [*np.concatenate([np.empty(0, int), *found])] == [*range(start, stop)]
    assert len(found) <= max(1, 2 * len(shape))


ROWS, COLUMNS = 400, 500


@pytest.mark.parametrize(
    ("array", "most"),
    [
        # Transposed: all that is stored is wanted, and read at once.
        (lambda base: base.T, 1),
        (lambda base: base.reshape(40, 10, 500).transpose(2, 1, 0), 1),
        (lambda base: base.reshape(40, 10, 50, 10).transpose(3, 0, 2, 1), 1),
        # A half of each row is near enough to be read with the other.
        (lambda base: base[:, ::2], 1),
        (lambda base: base[:, 250:], 1),
        # A column of a wide matrix: an element a row, but not a read an element of all.
        (lambda base: base[:, 3], ROWS),
        (lambda base: base[:, 3:5].T, ROWS),
        # Rows far apart are read each for itself.
        (lambda base: base[::50], ROWS // 50),
        (lambda base: base[::-50][::-1], ROWS // 50),
    ],
)  # fmt: skip
def test_the_number_of_reads_is_bounded(array: Any, most: int) -> None:
    base = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)
    source, wanted = Counting(base.tobytes()), array(base)
    found = read(source, view(wanted, base), 0, wanted.size)
    np.testing.assert_array_equal(found, wanted.reshape(-1))
    reads: list[int] = source.reads  # type: ignore[attr-defined]
    assert len(reads) <= most
    assert sum(reads) <= max(4 * wanted.nbytes, (1 << 14) * len(reads))


@pytest.mark.parametrize(
    ("shape", "order"), [((1200, 1000), (1, 0)), ((64, 16, 32, 32), (3, 1, 0, 2))]
)
def test_a_tensor_that_one_input_has_permuted_is_not_read_element_by_element(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: list[int], order: tuple[int, ...]
) -> None:
    matrix = torch.randn(shape)
    back = [order.index(axis) for axis in range(len(order))]
    torch.save({"w": matrix}, tmp_path / "0.pt")
    torch.save({"w": matrix.permute(order).contiguous().permute(back)}, tmp_path / "1.pt")
    plan = planned([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "out.safetensors")
    reads: list[int] = []
    preadv = os.preadv

    def counted(fd: int, buffers: Any, offset: int) -> int:
        reads.append(offset)
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    swavg.execute(plan, Resources(threads=1))
    monkeypatch.undo()
    assert torch.equal(load(tmp_path / "out.safetensors")["w"], matrix)
    # Some columns in each of the other's rows at a time.
    assert len(reads) < matrix.numel() / 30


@given(shape=st.lists(st.integers(1, 7), min_size=2, max_size=4), seed=st.integers(0, 2**16))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_permuted_view_is_averaged_as_torch_reads_it(
    tmp_path: Path, shape: list[int], seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(shape)).tolist()
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).permute(order)
    path = tmp_path / "view.pt"
    torch.save({"w": tensor, "plain": torch.ones(1)}, path)
    assert np.array_equal(swavg.open_checkpoint(path).read("w"), tensor.numpy())
    plan = planned([path, path], tmp_path / "out.safetensors", cut=64, force=True)
    swavg.execute(plan, Resources(threads=1))
    assert torch.equal(load(tmp_path / "out.safetensors")["w"], tensor.contiguous())


# Packed elements of 4 and 6 bits.


def test_the_first_element_lies_in_the_lowest_bits():
    packed = np.uint8([0x21, 0x43])
    assert unpack_codes(packed, BY_NAME["float4_e2m1fn"]).tolist() == [1, 2, 3, 4]
    packed = np.uint8([0b10_000001, 0b0011_0000, 0b000100_00])
    assert unpack_codes(packed, BY_NAME["float6_e2m3fn"]).tolist() == [1, 2, 3, 4]


def test_every_code_comes_back():
    codes = np.random.default_rng(0).integers(0, 64, 64, dtype=np.uint8)
    bits = np.unpackbits(codes[:, None], axis=1, bitorder="little")
    for name, width in (("float4_e2m1fn", 4), ("float6_e3m2fn", 6)):
        packed = np.packbits(bits[:, :width].reshape(-1), bitorder="little")
        expected = codes & ((1 << width) - 1)
        np.testing.assert_array_equal(unpack_codes(packed, BY_NAME[name]), expected)


def test_nothing_unpacks_to_nothing():
    assert unpack_codes(np.empty(0, np.uint8), BY_NAME["float6_e2m3fn"]).size == 0


def test_rows_in_several_places_are_read_into_where_they_belong() -> None:
    whole = np.arange(60, dtype=np.float32).reshape(10, 6)
    # In the source they lie the other way round.
    data = np.concatenate([whole[7:], whole[3:7], whole[:3]])
    boxes = (
        Box(0, 7 * 24, (0, 0), (3, 6)),
        Box(0, 3 * 24, (3, 0), (4, 6)),
        Box(0, 0, (7, 0), (3, 6)),
    )
    tensor = Tensor(TensorSpec("x", FLOAT, (10, 6)), boxes, (10, 6))
    for start, stop in itertools.combinations_with_replacement(range(0, 61), 2):
        source = Counting(data.tobytes())
        np.testing.assert_array_equal(
            read(source, tensor, start, stop), whole.reshape(-1)[start:stop]
        )
        assert sum(source.reads) == 4 * (stop - start)
        assert len(source.reads) <= 3
