"""Legacy torch files: read as torch reads them."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_reading import DTYPES, Opened, assert_same, of_bytes, opened, packed

from swavg.errors import InputError
from swavg.formats import open_checkpoint
from swavg.formats.torch import LEGACY

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def saved(path: Path, value: Any, **options: Any) -> Opened:
    torch.save(value, path, _use_new_zipfile_serialization=False, **options)
    return opened(path, legacy=True)


def refused(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        opened(path, legacy=True)
    return caught.value.problem


def test_every_dtype_reads_as_torch_reads_it(tmp_path: Path) -> None:
    state = {str(dtype): of_bytes(dtype, 6).reshape(2, 3) for dtype in DTYPES}
    assert_same(saved(tmp_path / "a.pth", state), state)


def test_views_ties_scalars_and_empty_tensors_read_as_torch_reads_them(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    state = {
        "whole": base,
        "tied": base,
        "part": base[5:9],
        "turned": base.reshape(4, 6).t(),
        "scalar": torch.tensor(7.0),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base[3:5]),
    }
    checkpoint = saved(tmp_path / "a.pth", state)
    assert_same(checkpoint, state)
    whole, tied = checkpoint.tensors["whole"], checkpoint.tensors["tied"]
    assert whole[1:] == tied[1:]


def test_the_state_dict_is_found_and_a_module_is_walked(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    content = {"epoch": 4, "model": module, "optimizer": {"m": torch.zeros(2)}}
    checkpoint = saved(tmp_path / "a.pth", content)
    assert_same(checkpoint, dict(module.state_dict()))
    assert checkpoint.state.root_key == "model"
    assert checkpoint.values == {"epoch": 4}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_legacy_file_is_known_by_its_first_bytes(tmp_path: Path, protocol: int) -> None:
    state = {"w": torch.arange(3.0)}
    checkpoint = saved(tmp_path / "a.pth", state, pickle_protocol=protocol)
    assert_same(checkpoint, state)
    assert LEGACY.recognises((tmp_path / "a.pth").read_bytes()[:64])
    torch.save(state, tmp_path / "a.pt")
    assert not LEGACY.recognises((tmp_path / "a.pt").read_bytes()[:64])
    assert not LEGACY.recognises(pickle.dumps(state["w"].tolist(), protocol))


def test_views_of_storages_as_old_torch_wrote_them_are_placed(tmp_path: Path) -> None:
    # Before 0.4 a storage could be a view of another: (key, offset, size) behind the id.
    saved(tmp_path / "a.pth", {"w": torch.arange(6.0)})
    data = (tmp_path / "a.pth").read_bytes()
    old = b"K\x06Ntq"
    assert data.count(old) == 1
    view = b"K\x06X\x01\x00\x00\x00vK\x02K\x03\x87tq"
    data = data.replace(old, view).replace(b"K\x00K\x06\x85", b"K\x00K\x03\x85")
    (tmp_path / "b.pth").write_bytes(data)
    checkpoint = opened(tmp_path / "b.pth", legacy=True)
    assert packed(checkpoint.path, checkpoint.tensors["w"]) == struct.pack("<3f", 2, 3, 4)
    assert "cannot be read: a view of a storage that reaches beyond it" in refused(
        tmp_path / "c.pth", data.replace(view, view.replace(b"K\x03\x87", b"K\x05\x87"))
    )


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth", {"w": torch.arange(4.0)})
    data = (tmp_path / "a.pth").read_bytes()
    for size in range(len(data)):
        assert "truncated" in refused(tmp_path / "b.pth", data[:size]), size


def test_defects_of_the_frame_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a.pth", {"w": torch.arange(4.0)})
    data = (tmp_path / "a.pth").read_bytes()
    path = tmp_path / "b.pth"
    assert refused(path, data + b"more") == "4 stray bytes follow its last storage"
    assert refused(path, pickle.dumps({"w": 1}, 2)).startswith("not a torch checkpoint")
    assert refused(path, data.replace(b"M\xe9\x03.", b"M\xea\x03.")) == (
        "a legacy torch file of an unknown protocol"
    )
    assert "big-endian" in refused(
        path, data.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89")
    )
    count = struct.pack("<q", 4)
    assert data.count(count) == 1
    assert "two sizes" in refused(path, data.replace(count, struct.pack("<q", 3)))
    assert "two sizes" in refused(path, data.replace(count, struct.pack("<q", -1)))
    assert "truncated" in refused(path, data.replace(b"K\x04Ntq", b"K\x05Ntq"))
    keys = data[data.rindex(b"\x80\x02]") : data.index(count)]
    assert "is missing" in refused(path, data[: data.rindex(keys)] + b"\x80\x02].")
    assert "none" in refused(path, data.replace(keys, b"\x80\x02K\x01."))
    assert "unknown or repeated" in refused(path, data.replace(keys, b"\x80\x02]K\x01a."))


def test_the_tar_format_of_torch_0_1_is_refused(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    with pytest.raises(InputError, match="is a tar file"):
        open_checkpoint(tmp_path / "a.pth")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_tensors_beside_the_state_dict_do_no_harm(tmp_path: Path) -> None:
    quantized = torch.quantize_per_tensor(torch.ones(5), 1.0, 0, torch.qint8)
    content = {"state_dict": {"w": torch.arange(3.0)}, "extra": {"q": quantized}}
    assert_same(saved(tmp_path / "a.pth", content), content["state_dict"])
