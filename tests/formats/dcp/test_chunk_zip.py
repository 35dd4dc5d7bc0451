"""The zip of a tensor, against torch and against Python's own reader of zips."""

from __future__ import annotations

import io
import zipfile
import zlib

import numpy as np
import pytest
import torch

from swavg.dtypes import BY_NAME
from swavg.formats.dcp.chunk_zip import ChunkZip, digits


@pytest.mark.parametrize("shape", [(), (0, 4), (3,), (2, 3, 5), (1, 1, 2, 2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int64", "bool", "float8_e4m3fn"])
def test_torch_loads_it_and_every_checksum_is_right(dtype, shape):
    chunk = ChunkZip(BY_NAME[dtype], shape)
    whole = torch.ones(shape).to(getattr(torch, dtype))
    data = whole.reshape(-1).view(torch.uint8).numpy().tobytes() if whole.numel() else b""
    made = chunk.head + data + chunk.tail(zlib.crc32(data), "layer.weight")
    assert len(made) == chunk.size
    loaded = torch.load(io.BytesIO(made), weights_only=True)
    assert (loaded.dtype, loaded.shape) == (whole.dtype, whole.shape)
    np.testing.assert_array_equal(loaded.float().numpy(), whole.float().numpy())
    with zipfile.ZipFile(io.BytesIO(made)) as file:
        assert file.testzip() is None
        assert file.read("archive/.data/serialization_id") == digits("layer.weight")


def test_all_but_the_digits_and_checksums_is_what_torch_writes():
    whole = torch.arange(6.0).reshape(2, 3)
    saved = io.BytesIO()
    torch.save(whole, saved)
    data = whole.numpy().tobytes()
    chunk = ChunkZip(BY_NAME["float32"], (2, 3))
    made = chunk.head + data + chunk.tail(zlib.crc32(data), "w")
    with zipfile.ZipFile(saved) as own, zipfile.ZipFile(io.BytesIO(made)) as ours:
        assert ours.namelist() == own.namelist()
