"""The records of a torch zip, as zipfile finds them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch_reading import reading, zipped

from swavg.formats.records import Record
from swavg.formats.torch.archive import Archive, read_archive, read_graph


def archive_at(path: Path) -> Archive:
    with reading(path) as (read, file):
        return read_archive(read, file.name, file.size)


def test_names_places_and_checksums_are_those_of_the_zip(tmp_path: Path) -> None:
    path = tmp_path / "name.pt"
    torch.save({f"w{n}": torch.arange(float(n)) for n in range(40)}, path)
    archive, data = archive_at(path), path.read_bytes()
    assert (archive.root, archive.alignment) == ("name", 64)
    with zipfile.ZipFile(path) as expected:
        records = [
            Record(info.filename.removeprefix("name/"), record.offset, info.file_size, info.CRC)
            for info, record in zip(expected.infolist(), archive, strict=True)
        ]
        assert list(archive) == records
        for record in archive:
            body = data[record.offset : record.offset + record.size]
            assert body == expected.read(f"name/{record.name}")
            assert archive.record(record.name) == record
    assert archive.record("data/40") is None


def test_the_alignment_is_told(tmp_path: Path) -> None:
    records = [("a/data.pkl", b"\x80\x02}."), ("a/.storage_alignment", b"128")]
    (tmp_path / "a.pt").write_bytes(zipped(records))
    assert archive_at(tmp_path / "a.pt").alignment == 128


def test_many_tensors_take_few_requests_and_opcodes(tmp_path: Path) -> None:
    path, count = tmp_path / "a.pt", 3000
    torch.save({f"layer.{n}.weight": torch.ones(2, 3) for n in range(count)}, path)
    requests = 0
    with reading(path) as (read, file):

        def counted(offset: int, size: int) -> bytearray | bytes:
            nonlocal requests
            requests += 1
            return read(offset, size)

        archive = read_archive(counted, file.name, file.size)
        graph = read_graph(counted, archive)
    assert len(archive) > count
    assert requests < 12
    # The key, its memo, the function, the arguments at once, and the memo of the tensor.
    assert graph.opcodes < 6 * count + 8192
