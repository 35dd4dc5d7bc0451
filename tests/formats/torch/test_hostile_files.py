"""Damaged, hostile and unsuitable torch zips are refused, each for its own reason."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_reading import assert_same, opened, tensor_pickle, torch_zip, zipped

from swavg.errors import InputError


def refused(path: Path, data: bytes | None = None, key: str | None = None) -> str:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        opened(path, key, legacy=False)
    assert str(caught.value).startswith(f"{path}: ")
    return caught.value.problem


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.pt"


def saved(path: Path, value: Any) -> bytes:
    torch.save(value, path)
    return path.read_bytes()


def test_the_handmade_zip_without_defects_reads(path: Path) -> None:
    path.write_bytes(torch_zip(tensor_pickle(), struct.pack("<2f", 1, 2)))
    assert_same(opened(path), {"w": torch.tensor([1.0, 2.0])})


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ({"size": (3,)}, "'w' reaches beyond its storage of 8 bytes"),
        ({"offset": 1}, "'w' reaches beyond its storage of 8 bytes"),
        ({"stride": (2,)}, "'w' reaches beyond its storage of 8 bytes"),
        ({"size": (1 << 61, 8), "stride": (0, 0)}, "'w' claims 73,786,976,294,838,206,464 bytes"),
        ({"size": (5 << 20,), "stride": (0,)}, "'w' claims 20,971,520 bytes of a storage of 8"),
        ({"size": (-2,)}, "'w' has an impossible shape, stride or offset"),
        ({"stride": (-1,)}, "'w' has an impossible shape, stride or offset"),
        ({"offset": -1}, "'w' has an impossible shape, stride or offset"),
        ({"offset": True}, "'w' has an impossible shape, stride or offset"),
        ({"size": (2, 1)}, "'w' has an impossible shape, stride or offset"),
        ({"size": [2]}, "'w' has an impossible shape, stride or offset"),
        ({"size": (1,) * 40, "stride": (1,) * 40}, "'w' has an impossible shape"),
        ({"size": (1.5,)}, "'w' has an impossible shape, stride or offset"),
        ({"numel": 3}, "its storage '0' has 8 bytes, not 3 elements of 4"),
        ({"numel": -1}, "its pickle cannot be read: a storage without a key"),
        ({"storage": "torch DoubleStorage"}, "its storage '0' has 8 bytes, not 2 elements of 8"),
        ({"storage": "torch NewStorage"}, "'w' is a tensor of NewStorage, which holds no plain"),
        ({"storage": "os system"}, "its pickle cannot be read: a storage of no known class"),
        ({"function": "torch._utils _rebuild_qtensor"}, "'w' is a quantized tensor"),
        ({"function": "torch._utils _rebuild_nested_tensor"}, "'w' is a nested tensor"),
        ({"function": "torch._utils _rebuild_tensor_v3"}, "'w' is a tensor of no known dtype"),
        ({"function": "os system"}, "holds no tensors that could be a state dict"),
    ],
)
def test_impossible_tensors_are_refused(path: Path, numbers: Any, problem: str) -> None:
    assert refused(path, torch_zip(tensor_pickle(**numbers))).startswith(problem)


def test_a_small_expanded_view_is_allowed(path: Path) -> None:
    path.write_bytes(torch_zip(tensor_pickle((4 << 20,), (0,)), struct.pack("<2f", 3, 4)))
    checkpoint = opened(path)
    assert checkpoint.tensors["w"].nbytes == 4
    assert checkpoint.tensors["w"].shape == (4 << 20,)


@pytest.mark.parametrize(
    ("defects", "problem"),
    [
        ({"method": 8}, "its record 'a/data.pkl' is compressed; torch stores records as they are"),
        ({"flags": 1}, "its record 'a/data.pkl' is encrypted or patched"),
        ({"prefix": b"MZ"}, "corrupt zip: the header of 'a/data.pkl' is not where it should be"),
        ({"gap": b"gap"}, "corrupt zip: 3 stray bytes before 'a/data/0'"),
        ({"overlap": 1}, "corrupt zip: 'a/data/0' overlaps the record before it"),
        ({"local_name": "a/data.pkx"}, "corrupt zip: the header of 'a/data.pkl' is not where"),
    ],
)
def test_defective_zips_are_refused(path: Path, defects: Any, problem: str) -> None:
    found = refused(path, torch_zip(tensor_pickle(), **defects))
    if "prefix" in defects:
        problem = "corrupt zip: its offsets do not add up (bytes were put in front, or cut out)"
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("records", "problem"),
    [
        (["a/data.pkl", "a/data.pkl"], "corrupt zip: 'a/data.pkl' is there twice"),
        (["a/data.pkl", "a/../x"], "a zip record has the unsafe name 'a/../x'"),
        (["/a/data.pkl"], "a zip record has the unsafe name '/a/data.pkl'"),
        (["a/data.pkl", "a\\b"], "a zip record has the unsafe name"),
        (["a/data.pkl", "b/data/0"], "its zip has records outside its folder"),
        (["a/data.pkl"], "its storage '0' is missing"),
        (["weights.npy"], "a zip, but no torch checkpoint (it has no data.pkl)"),
        (["data.pkl"], "a zip, but no torch checkpoint (it has no data.pkl)"),
        ([], "a zip, but no torch checkpoint (it has no data.pkl)"),
        (["a/data.pkl", "a/code/m.py"], "a TorchScript archive, which holds a program"),
        (["a/data.pkl", "a/constants.pkl"], "a TorchScript archive, which holds a program"),
    ],
)
def test_unsuitable_records_are_refused(path: Path, records: list[str], problem: str) -> None:
    data = zipped([(name, tensor_pickle()) for name in records])
    assert refused(path, data).startswith(problem)


def test_the_byte_order_and_the_alignment_are_checked(path: Path) -> None:
    records = [("a/data.pkl", tensor_pickle()), ("a/data/0", bytes(8))]
    data = zipped([*records, ("a/byteorder", b"big")])
    assert refused(path, data) == "written on a big-endian machine, which swavg does not read"
    data = zipped([*records, ("a/.storage_alignment", b"-4")])
    assert refused(path, data) == "corrupt: its storage alignment is no number"


def test_a_truncated_file_is_refused_wherever_it_ends(path: Path) -> None:
    data = saved(path, {"w": torch.arange(4.0)})
    for size in range(len(data)):
        found = refused(path, data[:size])
        assert "truncated" in found, (size, found)


def test_bytes_before_and_after_are_refused(path: Path) -> None:
    data = saved(path, {"w": torch.arange(4.0)})
    assert refused(path, data + b"more") == "4 stray bytes follow its zip directory"
    assert "64-bit directory is not where it should be" in refused(path, b"PK\3\4" + data)


def test_a_file_that_is_no_file_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.pt") == "no such file"
    assert refused(tmp_path) == "not a regular file"
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == "not a regular file"


def test_a_directory_of_false_counts_and_sizes_costs_nothing(path: Path) -> None:
    data = torch_zip(tensor_pickle())
    end = data[:-22]
    tracemalloc.start()
    for count, size, offset in (
        (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFF, 10, 5),
        (60000, len(data), 0),
        (3, 0x7FFFFFFF, len(data)),
    ):
        tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, offset, 0)
        assert "corrupt" in refused(path, end + tail)
    last, size = len(data) - 22, 0xFFFFFFFFFFFF
    for wide in ((1 << 62, 1 << 62, size, 0), (5, 5, size, size), (1 << 40, 1 << 40, last, 0)):
        record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, *wide)
        record += struct.pack("<4sIQI", b"PK\6\7", 0, last, 1)
        tail = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *(0xFFFF,) * 2, *(0xFFFFFFFF,) * 2, 0)
        assert "corrupt" in refused(path, end + record + tail)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_compressed_and_rezipped_archives_are_told_apart(path: Path, tmp_path: Path) -> None:
    state = {"w": torch.arange(40.0)}
    saved(path, state)
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        with (
            zipfile.ZipFile(path) as source,
            zipfile.ZipFile(tmp_path / "again.pt", "w", method) as target,
        ):
            for name in source.namelist():
                target.writestr(name, source.read(name))
        if method == zipfile.ZIP_DEFLATED:
            assert "is compressed" in refused(tmp_path / "again.pt")
        else:
            assert_same(opened(tmp_path / "again.pt"), state)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_tensors_without_plain_bytes_are_refused_by_name(path: Path) -> None:
    kinds = {
        "a sparse tensor": torch.eye(2).to_sparse(),
        "a quantized tensor": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
        "a nested tensor": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "a meta tensor, without data": torch.empty(2, device="meta"),
        "a tensor with a lazy operation (conj)": torch.ones(2, dtype=torch.complex64).conj(),
        "a tensor with a lazy operation (neg)": torch._neg_view(torch.ones(2)),
    }
    for what, tensor in kinds.items():
        saved(path, {"w": torch.ones(2), "bad": tensor})
        assert refused(path).startswith(f"'bad' is {what}")
        # Beside the state dict they do no harm.
        saved(path, {"state_dict": {"w": torch.ones(2)}, "extra": {"bad": tensor}})
        assert_same(opened(path), {"w": torch.ones(2)})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_torchscript_archive_is_refused(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))
    assert refused(path) == "a TorchScript archive, which holds a program"


def test_a_file_without_a_state_dict_says_what_it_has(path: Path) -> None:
    sub = {"w": torch.ones(2)}
    saved(path, {"first": sub, "second": sub, "optimizer": {"m": torch.ones(1)}, "epoch": 1})
    assert refused(path) == "several state dicts could be meant: 'first', 'second'"
    with pytest.raises(InputError, match="Choose one with key=first, or all with key=''"):
        opened(path)
    assert_same(opened(path, key="second"), sub)
    assert list(opened(path, key="").tensors) == ["first.w", "second.w", "optimizer.m"]
    assert refused(path, key="third") == "has no 'third'"
    with pytest.raises(InputError, match="There are: 'first', 'second', 'optimizer', 'epoch'"):
        opened(path, key="third")
    assert refused(path, key="first.w") == "key= names a tensor, not a state dict"
    assert refused(path, key="epoch") == "no tensors under 'epoch'"
    for nothing in ({"epoch": 3}, {"optimizer": {"state": {0: torch.ones(1)}}}, {}):
        saved(path, nothing)
        assert refused(path) == "holds no tensors that could be a state dict"
    saved(path, torch.ones(3))
    assert refused(path) == "holds a single tensor, not a state dict"
    saved(path, "text")
    assert refused(path) == "holds no state dict"


def test_an_optimizer_is_never_averaged_by_accident(path: Path) -> None:
    # Its structure tells it, whatever its name.
    adam = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
    saved(path, {"o": adam, "my_net": {"w": torch.ones(2)}})
    assert opened(path).state.root_key == "my_net"
    saved(path, {"model": {"net": {"w": torch.ones(2)}, "o": adam}})
    assert list(opened(path).tensors) == ["w"]


def test_names_that_collide_or_cannot_be_written_are_refused(path: Path) -> None:
    one = torch.ones(1)
    saved(path, {"a.b": one, "a": {"b": one}})
    assert refused(path) == "two tensors are called 'a.b'"
    saved(path, {"\ud800": one})
    assert refused(path).startswith("a tensor's name is no text")
    saved(path, {"x" * 5000: one})
    assert refused(path) == "a name of 5,000 characters"


@pytest.mark.parametrize("legacy", [False, True])
def test_random_damage_never_gives_anything_but_an_input_error(path: Path, legacy: bool) -> None:
    torch.save(
        {"state_dict": {"w": torch.arange(4.0), "v": torch.arange(4.0).reshape(2, 2).t()}, "n": 1},
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    data, chance = path.read_bytes(), random.Random(7)
    count = 0
    for _ in range(600):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 8))):
            damaged[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            checkpoint = opened(path, legacy=legacy)
        except InputError:
            continue
        count += 1
        for tensor in checkpoint.tensors.values():
            assert 0 <= tensor.offset <= tensor.offset + tensor.nbytes <= len(data)
    # Damage to the tensors' own bytes cannot be seen.
    assert 0 < count < 600
