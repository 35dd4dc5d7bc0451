"""Damage that only a file's own checksums tell of."""

import zipfile

import pytest
import torch
from checkpoints import save, state

import swavg
from swavg.engine.resources import Resources
from swavg.errors import InputError

COUNT = 300_000
"""Elements of a tensor that several tasks read."""


@pytest.fixture
def pair(tmp_path):
    """Two files of large, small, strided and integer tensors, with something beside them."""
    paths = []
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        model = {
            "large": torch.randn(COUNT, 4, generator=generator),
            "turned": torch.randn(40, 30, generator=generator).T,
            "channels": torch.randn(4, 3, 5, 5, generator=generator).to(
                memory_format=torch.channels_last
            ),
            **state(seed),
        }
        paths.append(str(tmp_path / f"{seed}.pt"))
        torch.save({"model": model, "optimizer": {"momentum": torch.randn(9)}}, paths[-1])
    return paths


def run(paths, output, **resources):
    report = swavg.average(paths, output=output, resources=Resources(check_crc=True, **resources))
    return " ".join(report.notes)


def records(path):
    """Name, offset and size of each record with bytes in it."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            skip = sum(int.from_bytes(file.read(2), "little") for _ in range(2))
            if info.file_size:
                yield info.filename, info.header_offset + 30 + skip, info.file_size


@pytest.mark.parametrize(
    "resources",
    [{"threads": 1}, {"threads": 3, "processes": False}, {"threads": 2, "processes": True}],
)  # fmt: skip
def test_whole_files_are_as_they_say(pair, tmp_path, resources):
    count = sum(1 for path in pair for _ in zipfile.ZipFile(path).infolist())
    said = run(pair, tmp_path / "out.pt", **resources)
    assert f"{count} records have the checksum that their file tells of" in said
    assert "not read whole" not in said


@pytest.mark.parametrize("which", [0, 1])
def test_a_flipped_bit_in_any_record_is_noticed(pair, tmp_path, which):
    path = pair[which]
    with open(path, "rb") as file:
        whole = file.read()
    seen = 0
    for name, offset, size in records(path):
        damaged = bytearray(whole)
        if name.endswith("data.pkl"):
            # A pickle like any other.
            damaged[whole.index(b"momentum")] ^= 0x20
        elif "/data/" in name:
            damaged[offset + size - 1] ^= 0x10
        else:
            continue  # opening looks at what these say
        with open(path, "wb") as file:
            file.write(damaged)
        with pytest.raises(InputError, match=f"record '{name.partition('/')[2]}'"):
            run(pair, tmp_path / "out.pt")
        assert not (tmp_path / "out.pt").exists()
        seen += 1
    assert seen >= 8


def test_what_was_not_read_whole_is_counted(pair, tmp_path):
    # Half of a storage that is wide enough not to be read on the side.
    base = torch.zeros(4 << 20, dtype=torch.float32)
    paths = []
    for seed in (1, 2):
        paths.append(str(tmp_path / f"part{seed}.pt"))
        torch.save({"part": base[: 1 << 20], "other": torch.ones(1)}, paths[-1])
    policy = swavg.Policy(weights_only=True)
    report = swavg.average(
        paths, output=tmp_path / "out.pt", policy=policy, resources=Resources(check_crc=True)
    )
    assert "; 2 were not read whole" in " ".join(report.notes)


def test_a_folder_of_torch_shards_has_checksums_too(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        torch.save(state(1), tmp_path / name / "pytorch_model.bin")
    inputs = [tmp_path / "a", tmp_path / "b"]
    assert "records have" in run(inputs, tmp_path / "out")
    path = tmp_path / "b" / "pytorch_model.bin"
    name, offset, _ = next(found for found in records(path) if found[0].endswith("data/0"))
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"\x01")
    with pytest.raises(InputError, match=r"pytorch_model\.bin: is damaged"):
        run(inputs, tmp_path / "other")


def test_what_has_no_checksums_is_said(tmp_path):
    paths = [save(tmp_path / f"{seed}.safetensors", state(seed)) for seed in (1, 2)]
    assert "no input holds checksums" in run(paths, tmp_path / "out.safetensors")
