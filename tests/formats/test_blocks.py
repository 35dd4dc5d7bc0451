"""Small places are read in few requests; short reads go on; a read error names the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch_reading import assert_same, opened

from swavg.errors import InputError
from swavg.formats.blocks import read_places


def test_near_places_are_one_request_and_far_ones_several() -> None:
    data = bytes(range(256)) * 40_000
    requests = []

    def read(offset: int, size: int) -> bytes:
        requests.append((offset, size))
        return data[offset : offset + size]

    places = [(0, 30), (100, 7), (100, 7), (4000, 40), (1_000_000, 8), (1_000_008, 8)]
    found = [block[at : at + 4] for block, at in read_places(read, places)]
    assert found == [data[offset : offset + 4] for offset, _ in places]
    assert requests == [(0, 4040), (1_000_000, 16)]
    assert list(read_places(read, [])) == []


def test_no_request_is_large() -> None:
    sizes = []

    def read(offset: int, size: int) -> bytes:
        sizes.append(size)
        return bytes(size)

    assert len(list(read_places(read, ((1000 * n, 500) for n in range(5000))))) == 5000
    assert max(sizes) <= 1 << 20
    assert len(sizes) == 5


@pytest.mark.parametrize("legacy", [False, True])
def test_short_reads_go_on_and_errors_name_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    state = {"w": torch.arange(4.0)}
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    preadv = os.preadv

    def short(fd: int, buffers: list[memoryview], offset: int) -> int:
        return preadv(fd, [buffers[0][:3]], offset)

    monkeypatch.setattr(os, "preadv", short)
    assert_same(opened(tmp_path / "a.pt"), state)

    def broken(fd: int, buffers: list[memoryview], offset: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(InputError, match=r"a\.pt: read error: Input/output error"):
        opened(tmp_path / "a.pt")
