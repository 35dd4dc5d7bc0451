"""Where the records of a zip go: as torch's loader computes it, beyond 32 and 16 bits too."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from array import array
from pathlib import Path

import pytest

from swavg.dtypes import BY_NAME
from swavg.formats import open_checkpoint
from swavg.formats.layout import Specs
from swavg.formats.torch.plain import lay_out_plain
from swavg.formats.zip_layout import ArchiveLayout, Member, arranged, lay_out_archive

FLOAT = BY_NAME["float32"]


def specs_of(**numels: int) -> Specs:
    forms = [(FLOAT, (numel,)) for numel in numels.values()]
    return Specs(tuple(numels), tuple(forms), array("I", range(len(forms))))


def write_sparse(path: Path, layout: ArchiveLayout) -> None:
    """The file with holes for its tensors; their CRCs are 0."""
    with open(path, "wb") as file:
        for offset, data in layout.fixed():
            file.seek(offset)
            file.write(data)
        for offset, make in layout.deferred(lambda offset: 0):
            file.seek(offset)
            file.write(make())
    assert path.stat().st_size == layout.size


@pytest.mark.slow
def test_records_beyond_four_gibibytes_are_where_torch_computes_them(tmp_path: Path) -> None:
    big, small = (1 << 30) + 5, 3
    specs = specs_of(big=big, small=small, empty=0, last=small)
    layout = lay_out_plain(specs, range(4), [], b"{}", "", lambda path: None)
    path = tmp_path / "big.pt"
    write_sparse(path, layout)
    placed = list(layout.arrangement)
    assert all(each.start % 64 == 0 for each in placed)
    infos = zipfile.ZipFile(path).infolist()
    assert [(info.filename, info.header_offset, info.file_size) for info in infos] == [
        (each.name, each.header, each.size) for each in placed
    ]
    found = open_checkpoint(path)
    offsets = {name: found.tensors[name].boxes[0].offset for name in found}
    starts = {each.name: each.start for each in placed}
    assert offsets["last"] == starts["archive/data/3"] > 1 << 32
    assert found.read("last").tolist() == [0, 0, 0]
    script = (
        "import sys, torch\n"
        "state = torch.load(sys.argv[1], mmap=True, weights_only=True)\n"
        "print([len(tensor) for tensor in state.values()])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, path],
        env={**os.environ, "TORCH_SERIALIZATION_DEBUG": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == f"[{big}, 3, 0, 3]\n", done.stderr


@pytest.mark.slow
def test_more_records_than_sixteen_bits_count(tmp_path: Path) -> None:
    members = [Member(f"a/{index}", 0, b"") for index in range(70_000)]
    layout = lay_out_archive(tuple(arranged(members)), specs_of(), [], [], check=lambda _: None)
    write_sparse(tmp_path / "many.pt", layout)
    assert len(zipfile.ZipFile(tmp_path / "many.pt").namelist()) == 70_000


def test_a_member_of_many_regions_has_the_crc_of_all(tmp_path: Path) -> None:
    import zlib

    body = bytes(range(24))
    members = [Member("a/x", 24), Member("a/e", 0), Member("a/y", 2, b"yy")]
    start = next(arranged(members)).start
    offsets = [start, start + 8, start + 12]
    layout = lay_out_archive(
        tuple(arranged(members)), specs_of(a=2, b=1, c=3), range(3), offsets, check=lambda _: None
    )
    parts = {start: body[:8], start + 8: body[8:12], start + 12: body[12:]}
    made = bytearray(layout.size)
    for offset, data in [*layout.fixed(), *parts.items()]:
        made[offset : offset + len(data)] = data
    for offset, make in layout.deferred(lambda offset: zlib.crc32(parts[offset])):
        made[offset : offset + len(data)] = (data := make())
    (tmp_path / "a.zip").write_bytes(made)
    archive = zipfile.ZipFile(tmp_path / "a.zip")
    assert archive.testzip() is None
    assert [archive.read(name) for name in archive.namelist()] == [body, b"", b"yy"]
