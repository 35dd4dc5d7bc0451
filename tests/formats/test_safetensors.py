"""safetensors: what we read is what the library reads, what we write is what it writes."""

from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import Any

import make
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from swavg.dtypes import BY_NAME, BY_SAFETENSORS, DType
from swavg.errors import OutputError, RequestError
from swavg.formats import open_checkpoint
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import Specs
from swavg.formats.safetensors import plan_specs
from swavg.formats.tensors import Shared
from swavg.storage.pool import Pool

relaxed = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

UNUSUAL = ["", ".", "../x", "a b", "ä", "層.重み", "😀", 'quo"te', "back\\slash", "tab\t\x01\x7f\n"]


def opened(path: Path, data: bytes) -> Checkpoint:
    path.write_bytes(data)
    return open_checkpoint(path)


def specs_of(*tensors: tuple[str, DType, tuple[int, ...]]) -> Specs:
    """What a format is asked to write."""
    names = tuple(name for name, _, _ in tensors)
    forms = tuple((dtype, shape) for _, dtype, shape in tensors)
    return Specs(names, forms, array("I", range(len(tensors))))


def laid_out(path: Path, data: bytes, metadata: dict[str, str], seed: int = 0) -> bytes:
    """What we write for the tensors of the file ``data``, given in any order."""
    checkpoint = opened(path, data)
    found = [tensor.spec for tensor in checkpoint.tensors.values()]
    specs = [(spec.name, spec.dtype, spec.shape) for spec in found]
    random.Random(seed).shuffle(specs)
    layout = plan_specs(specs_of(*specs), range(len(specs)), metadata)
    made = bytearray(layout.size)
    for offset, fixed in layout.fixed():
        made[offset : offset + len(fixed)] = fixed
    for number, offset in zip(layout.tensors, layout.offsets, strict=True):
        tensor = checkpoint.tensors[specs[number][0]]
        box, nbytes = tensor.boxes[0], tensor.spec.nbytes
        made[offset : offset + nbytes] = data[box.offset : box.offset + nbytes]
    return bytes(made)


def numpy_tensors() -> dict[str, np.ndarray[Any, Any]]:
    """A tensor of every dtype that the library knows from NumPy, a scalar and empty ones."""
    kinds = "bool uint8 int8 int16 uint16 float16 int32 uint32 float32 complex64 float64 int64"
    made = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in [*kinds.split(), "uint64"]}
    return made | {
        "scalar": np.array(3.5, np.float32),
        "empty": np.empty(0, np.float16),
        "hollow": np.empty((3, 0, 2), np.int64),
    }


def torch_tensors() -> dict[str, torch.Tensor]:
    kinds = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"]
    made = {kind: torch.arange(6.0).to(getattr(torch, kind)).reshape(3, 2) for kind in kinds}
    return made | {"scalar": torch.tensor(2.5, dtype=torch.bfloat16)}


def test_every_numpy_dtype_reads_as_the_library_reads_it(tmp_path: Path) -> None:
    data = safetensors.numpy.save(numpy_tensors(), {"format": "np", "note": "ä"})
    checkpoint = opened(tmp_path / "a.safetensors", data)
    expected = safetensors.numpy.load(data)
    assert set(checkpoint) == set(expected)
    assert checkpoint.metadata == {"format": "np", "note": "ä"}
    for name, values in expected.items():
        assert (checkpoint[name].shape, str(checkpoint[name].dtype)) == (values.shape, values.dtype)
        assert checkpoint.read(name).dtype == values.dtype
        np.testing.assert_array_equal(checkpoint.read(name), values, strict=True)


def test_every_torch_dtype_reads_as_the_library_reads_it(tmp_path: Path) -> None:
    data = safetensors.torch.save(torch_tensors())
    checkpoint = opened(tmp_path / "a.safetensors", data)
    for name, tensor in safetensors.torch.load(data).items():
        array = checkpoint.read(name)
        assert f"torch.{checkpoint[name].dtype}" == str(tensor.dtype)
        assert array.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(array.astype(np.float64), tensor.double().numpy())


@pytest.mark.parametrize("code", sorted(BY_SAFETENSORS))
def test_every_code_reads_the_bytes_that_the_rust_core_reads(tmp_path: Path, code: str) -> None:
    dtype = BY_SAFETENSORS[code]
    top = 2 if code == "BOOL" else 256
    content = bytes(7 * i % top for i in range(dtype.nbytes(24)))
    data = make.packed({"x": (code, (4, 6), content), "none": (code, (0,), b"")})
    reference = dict(safetensors.deserialize(data))
    assert bytes(reference["x"]["data"]) == content
    checkpoint = opened(tmp_path / "a.safetensors", data)
    whole = checkpoint["x"][...]
    assert (whole.shape, whole.dtype) == (tuple(reference["x"]["shape"]), dtype.numpy())
    expected = make.unpacked(content, code).reshape(4, 6)
    assert whole.tobytes() == expected.tobytes()
    for index in (slice(1, 3), 2, -1, slice(None, None, -2), slice(3, 1), (slice(1, 4), 5)):
        assert checkpoint["x"][index].tobytes() == expected[index].tobytes()
    assert checkpoint["none"][...].shape == (0,)


def test_a_scalar_reads_as_an_array_without_dimensions(tmp_path: Path) -> None:
    data = safetensors.numpy.save({"s": np.array(3.5, np.float32)})
    checkpoint = opened(tmp_path / "a.safetensors", data)
    read = checkpoint.read("s")
    assert isinstance(read, np.ndarray)
    assert (read.shape, read.item(), checkpoint["s"][()]) == ((), 3.5, np.float32(3.5))


@pytest.mark.parametrize("code", ["F4", "F6_E2M3", "F6_E3M2"])
def test_rows_that_begin_within_a_byte_are_read(tmp_path: Path, code: str) -> None:
    content = bytes(range(1, 1 + BY_SAFETENSORS[code].nbytes(8 * 3)))
    data = make.packed({"x": (code, (8, 3), content)})
    tensor = opened(tmp_path / "a.safetensors", data)["x"]
    expected = make.unpacked(content, code).reshape(8, 3)
    for first in range(8):
        np.testing.assert_array_equal(tensor[first], expected[first])
        for last in range(8):
            np.testing.assert_array_equal(tensor[first:last], expected[first:last])


@relaxed
@given(st.data())
def test_indices_read_as_in_numpy(tmp_path: Path, data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5))
    array = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors.numpy.save({"x": array}))
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=False))
    tensor = open_checkpoint(path)["x"]
    result = tensor[index]
    assert np.shape(result) == array[index].shape
    np.testing.assert_array_equal(result, array[index])


@pytest.mark.parametrize("index", [4, -5, "a", None, 1.0, True, [0, 1], (0, 6), (0, 0, 0)])
def test_an_index_beyond_the_tensor_is_an_index_error(tmp_path: Path, index: Any) -> None:
    data = safetensors.numpy.save({"x": np.zeros((4, 6), np.float32)})
    tensor = opened(tmp_path / "a.safetensors", data)["x"]
    with pytest.raises(IndexError):
        tensor[index]


def test_an_unknown_name_is_a_key_error(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make.arrays(tmp_path / "a.safetensors"))
    assert "c.w" not in checkpoint
    with pytest.raises(KeyError):
        checkpoint["c.w"]


@pytest.mark.parametrize(
    ("index", "nbytes"),
    [(slice(2, 5), 3 * 28), (3, 28), (-1, 28), (slice(4, 2), 0), ((slice(1, 2), 0), 28)],
)
def test_a_slice_reads_only_its_own_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Any, nbytes: int
) -> None:
    array = np.arange(70, dtype=np.float32).reshape(10, 7)
    checkpoint = open_checkpoint(make.arrays(tmp_path / "a.safetensors", x=array))
    asked = []
    read_into = Pool.read_into

    def counted(self: Pool, source: Any, offset: int, out: memoryview) -> None:
        asked.append(len(out))
        read_into(self, source, offset, out)

    monkeypatch.setattr(Pool, "read_into", counted)
    np.testing.assert_array_equal(checkpoint["x"][index], array[index])
    assert sum(asked) == nbytes


def test_opening_reads_nothing_but_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make.arrays(tmp_path / "a.safetensors", x=np.zeros(1 << 20, np.float32))
    import os

    asked = []
    preadv = os.preadv

    def counted(fd: int, buffers: list[memoryview], offset: int) -> int:
        asked.append(sum(map(len, buffers)))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    checkpoint = open_checkpoint(path)
    assert checkpoint["x"].shape == (1 << 20,)
    assert sum(asked) < 2048


def test_names_of_any_kind_read_as_the_library_reads_them(tmp_path: Path) -> None:
    tensors = {name: np.array([i], np.float32) for i, name in enumerate(UNUSUAL)}
    data = safetensors.numpy.save(tensors)
    checkpoint = opened(tmp_path / "a.safetensors", data)
    assert {name: float(checkpoint[name][0]) for name in checkpoint} == {
        name: float(array[0]) for name, array in safetensors.numpy.load(data).items()
    }


def test_tensors_are_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    data = make.packed({"z": ("U8", (2,), b"ab"), "a": ("U8", (1,), b"c"), "m": ("U8", (0,), b"")})
    assert list(opened(tmp_path / "a.safetensors", data)) == ["z", "a", "m"]


def test_a_file_without_tensors_opens(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path / "a.safetensors", safetensors.numpy.save({}, {"a": "b"}))
    assert (len(checkpoint), checkpoint.metadata) == (0, {"a": "b"})


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    data = safetensors.numpy.save({"x": np.arange(3)})
    assert opened(tmp_path / "a.pt", data).read("x").tolist() == [0, 1, 2]


@pytest.mark.parametrize("length", [640, 0x8B1F])
def test_a_header_whose_length_looks_like_another_format_opens(tmp_path: Path, length: int) -> None:
    header = b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    path = make.raw_file(tmp_path / "a", header + b" " * (length - len(header)), b"\7")
    assert open_checkpoint(path).read("x").tolist() == [7]


def test_equal_headers_are_kept_once(tmp_path: Path) -> None:
    shared = Shared()
    paths = [make.arrays(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    one, other = (open_checkpoint(path, shared=shared) for path in paths)
    assert one.tensors.columns is other.tensors.columns
    assert not np.array_equal(one.read("a.w"), other.read("a.w"))


def test_headers_that_differ_in_metadata_only_are_kept_once(tmp_path: Path) -> None:
    shared, tensors = Shared(), {"x": np.arange(4.0)}
    found = []
    for index, metadata in enumerate(({"a": "b"}, {"a": "b" * 100}, None)):
        path = tmp_path / f"{index}.safetensors"
        path.write_bytes(safetensors.numpy.save(tensors, metadata))
        found.append(open_checkpoint(path, shared=shared))
        assert found[-1].metadata == (metadata or {})
        assert found[-1].read("x").tolist() == [0, 1, 2, 3]
    assert found[0].tensors.columns is found[1].tensors.columns is found[2].tensors.columns


def test_metadata_behind_the_tensors_are_those_of_each_file(tmp_path: Path) -> None:
    shared = Shared()
    header = {"x": make.entry(), "__metadata__": {"a": "b"}}
    paths = [make.raw_file(tmp_path / name, header, bytes(4)) for name in "ab"]
    assert [open_checkpoint(path, shared=shared).metadata for path in paths] == [{"a": "b"}] * 2


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"ä": '"\n😀'}])
def test_numpy_tensors_are_written_as_the_library_writes_them(
    tmp_path: Path, metadata: dict[str, str]
) -> None:
    tensors = numpy_tensors() | {name: np.ones(2, np.float16) for name in UNUSUAL}
    data = safetensors.numpy.save(tensors, metadata or None)
    assert laid_out(tmp_path / "a", data, metadata) == data


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_torch_tensors_are_written_as_the_library_writes_them(
    tmp_path: Path, metadata: dict[str, str]
) -> None:
    path = tmp_path / "golden.safetensors"
    safetensors.torch.save_file(torch_tensors(), path, metadata or None)
    assert laid_out(tmp_path / "a", path.read_bytes(), metadata) == path.read_bytes()


@pytest.mark.slow
@relaxed
@given(st.lists(st.tuples(st.text(max_size=4), st.sampled_from(["F", "I"])), max_size=8))
def test_names_in_any_order_are_written_as_the_library_writes_them(
    tmp_path: Path, wanted: list[tuple[str, str]]
) -> None:
    tensors = {
        name: np.full(index % 3, index, np.float32 if kind == "F" else np.int16)
        for index, (name, kind) in enumerate(wanted)
        if name != "__metadata__"
    }
    data = safetensors.numpy.save(tensors)
    assert laid_out(tmp_path / "a", data, {}, seed=len(data)) == data


def test_every_dtype_is_ranked_as_the_rust_core_ranks_it(tmp_path: Path) -> None:
    from safetensors._safetensors_rust import TensorSpec

    # The core reads F6 but writes none.
    content = np.zeros(64, np.uint8)
    specs = {}
    for code in BY_SAFETENSORS.keys() - {"F6_E2M3", "F6_E3M2"}:
        dtype = BY_SAFETENSORS[code]
        name = "float4_e2m1fn_x2" if code == "F4" else dtype.name
        specs[code] = TensorSpec(
            dtype=name, shape=[8], data_ptr=content.ctypes.data, data_len=max(8, dtype.nbytes(8))
        )
    data = safetensors.serialize(specs)
    assert laid_out(tmp_path / "a", data, {}) == data


def test_a_small_file_is_these_bytes(tmp_path: Path) -> None:
    data = make.packed({"b": ("U8", (1,), b"\x07"), "a": ("F32", (), b"\0\0\x80\x3f")})
    text = (
        b'{"__metadata__":{"format":"pt"},'
        b'"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
        b'"b":{"dtype":"U8","shape":[1],"data_offsets":[4,5]}}'
    )
    padded = text + b" " * (-len(text) % 8)
    expected = len(padded).to_bytes(8, "little") + padded + b"\0\0\x80\x3f\x07"
    assert laid_out(tmp_path / "a", data, {"format": "pt"}) == expected


def test_what_is_written_reads_back_with_the_library(tmp_path: Path) -> None:
    tensors = numpy_tensors()
    data = laid_out(tmp_path / "a", safetensors.numpy.save(tensors), {"a": "1", "b": "2"})
    (tmp_path / "b.safetensors").write_bytes(data)
    with safetensors.safe_open(tmp_path / "b.safetensors", framework="numpy") as file:
        assert file.metadata() == {"a": "1", "b": "2"}
        for name in file.keys():  # noqa: SIM118
            np.testing.assert_array_equal(file.get_tensor(name), tensors[name], strict=True)


def test_the_finished_file_is_verified_with_the_library(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors.numpy.save({"x": np.arange(4.0)}))
    layout = plan_specs(specs_of(("x", BY_NAME["float64"], (4,))), [0], {})
    layout.verify(str(path))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OutputError, match="the safetensors library rejects it"):
        layout.verify(str(path))
    path.write_bytes(safetensors.numpy.save({"y": np.arange(4.0)}))
    with pytest.raises(OutputError, match="reads other tensors than were written"):
        layout.verify(str(path))


def test_a_dtype_that_safetensors_lacks_is_refused() -> None:
    specs = specs_of(("x", BY_NAME["float32"], (2,)), ("w", BY_NAME["complex128"], (2,)))
    with pytest.raises(RequestError, match="safetensors has no dtype for complex128") as caught:
        plan_specs(specs, range(2), {})
    assert "Write a .pt file instead" in str(caught.value)
    assert plan_specs(specs, [0], {}).tensors.tolist() == [0]


def test_a_tensor_cannot_take_the_place_of_the_metadata() -> None:
    specs = specs_of(("__metadata__", BY_NAME["float32"], (2,)))
    with pytest.raises(RequestError, match="cannot hold a tensor named '__metadata__'"):
        plan_specs(specs, [0], {})


@pytest.mark.slow
def test_a_header_beyond_the_limit_is_refused_and_shards_are_offered() -> None:
    specs = specs_of(("x", BY_NAME["float32"], (2,)))
    with pytest.raises(RequestError, match="safetensors allows 100,000,000") as caught:
        plan_specs(specs, [0], {"a": "x" * 100_000_000})
    assert "max_shard_size=" in str(caught.value)


def test_values_of_narrow_floats_are_those_of_ml_dtypes(tmp_path: Path) -> None:
    values = np.array([0.5, -1.5, 6.0, 0.0], np.float32)
    codes = values.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    content = bytes([codes[0] | codes[1] << 4, codes[2] | codes[3] << 4])
    data = make.packed({"x": ("F4", (4,), content)})
    read = opened(tmp_path / "a.safetensors", data).read("x")
    assert read.dtype == ml_dtypes.float4_e2m1fn
    np.testing.assert_array_equal(read.astype(np.float32), values)
