"""Arrays as sources: chunks that are missing, damaged, or not of the shape that is told."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import done, swavg
from orbax_folders import write_array

from swavg.errors import InputError
from swavg.formats import open_checkpoint
from swavg.storage.pool import Pool

FILES = Path(__file__).parents[2] / "frameworks" / "orbax" / "files"
KERNEL = "params.up.kernel"
"""12 x 8 in four tiles."""


@pytest.fixture
def plain(tmp_path):
    """A checkpoint whose chunks are files."""
    return Path(shutil.copytree(FILES / "plain" / "10", tmp_path / "10"))


def kernel_of(path):
    """The folder of an array."""
    return path / "default" / KERNEL


def described(path, **changes):
    """Change what an array says of itself."""
    file = kernel_of(path) / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refused(path, match):
    with pytest.raises(InputError, match=match) as caught:
        open_checkpoint(path).read(KERNEL)
    assert caught.value.path.endswith((KERNEL, ".zarray")), caught.value.path
    return caught.value


def test_a_chunk_that_is_missing_is_no_zeros(plain, tmp_path):
    (kernel_of(plain) / "1.0").unlink()
    refused(plain, "lacks chunks of its shape")
    found = swavg("average", plain, FILES / "plain" / "20", "-o", tmp_path / "out.safetensors")
    assert found.returncode == 4
    assert f"{KERNEL}: lacks chunks of its shape: was it copied in full?" in found.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_a_chunk_that_is_lost_when_it_is_read_is_no_zeros(plain):
    opened = open_checkpoint(plain)
    (kernel_of(plain) / "1.0").unlink()
    with pytest.raises(InputError, match=r"chunk \{1, 0\} .* is missing"):
        opened.read(KERNEL)


def forgotten(path):
    """Make it a checkpoint of an Orbax that did not say whether it stored zeros."""
    listing = path / "default" / "_METADATA"
    content = json.loads(listing.read_text())
    assert content.pop("store_array_data_equal_to_fill_value") is True
    listing.write_text(json.dumps(content))


def test_chunks_of_zeros_that_older_orbax_did_not_store_are_zeros(tmp_path):
    path = Path(shutil.copytree(FILES / "plain3" / "10", tmp_path / "in"))
    forgotten(path)
    before = open_checkpoint(path).read(KERNEL)
    (kernel_of(path) / "c" / "1" / "0").unlink()
    opened = open_checkpoint(path)
    before[6:, :4] = 0
    np.testing.assert_array_equal(opened.read(KERNEL), before)
    assert opened.notes == (
        f"chunks that are not stored are zeros, as older Orbax has it: of '{KERNEL}'",
    )


def test_where_nothing_stands_for_zeros_all_chunks_are_stored(plain):
    forgotten(plain)
    assert open_checkpoint(plain).read(KERNEL).shape == (12, 8)
    (kernel_of(plain) / "1.0").unlink()
    refused(plain, "lacks chunks of its shape")


def read_all(path):
    opened = open_checkpoint(path)
    return [opened.read(name) for name in opened]


@pytest.mark.parametrize("name", ["plain/10", "plain3/10", "zarr3/10", "ocdbt/10"])
def test_what_is_cut_short_or_gone_is_refused(tmp_path, name):
    path = Path(shutil.copytree(FILES / name, tmp_path / "in"))
    chunks = [file for file in path.rglob("*") if file.is_file() and file.parent.name != "in"]
    chunks = [file for file in chunks if file.stat().st_size and "process_0" not in str(file)]
    for file in chunks:
        data = file.read_bytes()
        for size in (None, 0, len(data) // 2, len(data) - 1):
            if size is None:
                file.unlink()
            else:
                file.write_bytes(data[:size])
            with pytest.raises(InputError):
                read_all(path)
        file.write_bytes(data)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"shape": [12, 9]}, "lacks chunks"),
        ({"shape": [10**9, 8]}, "lacks chunks"),
        ({"shape": [10**15] * 2, "chunks": [10**15] * 2}, "cannot be read|this machine has"),
        ({"shape": [10**7] * 2, "chunks": [10**7] * 2}, "this machine has"),
        ({"dtype": "<f8"}, "cannot be read"),
        ({"dtype": "<f2"}, "cannot be read"),
        ({"dtype": "int4"}, "has the dtype int4"),
        ({"dtype": "nonsense"}, "cannot be read"),
        ({"chunks": [6, 8]}, "cannot be read|lacks chunks"),
        ({"chunks": [0, 0]}, "cannot be read"),
        ({"shape": [-1, 8]}, "cannot be read"),
        ({"shape": "x"}, "cannot be read"),
        ({"compressor": {"id": "nonsense"}}, "cannot be read"),
        ({"compressor": None}, "cannot be read"),
        ({"order": "F", "shape": [12, 9]}, "lacks chunks"),
        ({"note": "x" * (2 << 20)}, "more than one array could need"),
    ],
)
def test_what_an_array_says_of_itself_is_checked(plain, changes, problem):
    described(plain, **changes)
    begun = time.process_time()
    refused(plain, problem)
    assert time.process_time() - begun < 5


def test_a_shard_of_more_chunks_than_memory_is_refused(tmp_path):
    path = Path(shutil.copytree(FILES / "plain3" / "10", tmp_path / "in"))
    file = kernel_of(path) / "zarr.json"
    text = json.loads(file.read_text())
    text["shape"] = text["chunk_grid"]["configuration"]["chunk_shape"] = [10**6, 10**6]
    text["codecs"][0]["configuration"]["chunk_shape"] = [1, 1]
    file.write_text(json.dumps(text))
    with pytest.raises(InputError, match=r"this machine has|cannot be read"):
        read_all(path)


def test_an_array_that_changes_meanwhile_is_refused(plain):
    opened = open_checkpoint(plain)
    source = opened.sources[list(opened).index(KERNEL)]
    source.check()
    described(plain)
    os.utime(kernel_of(plain) / ".zarray", (1, 1))
    with pytest.raises(InputError, match="changed while it was read"):
        source.check()
    with Pool() as pool, pytest.raises(InputError, match="changed while it was read"):
        pool.read(source, 0, 4)


@pytest.mark.parametrize("name", ["plain", "ocdbt", "zarr3"])
def test_an_array_is_a_source_of_its_own(name):
    opened, other = (open_checkpoint(FILES / name / step) for step in ("10", "20"))
    source = opened.sources[list(opened).index(KERNEL)]
    whole = opened.read(KERNEL).tobytes()
    assert (source.size, source.forks) == (len(whole), False)
    again = pickle.loads(pickle.dumps(source))
    assert (again, hash(again), again.identity) == (source, hash(source), source.identity)
    sources = (*opened.sources, *other.sources)
    assert len({each.identity for each in sources}) == len(sources)
    with Pool() as pool:
        for offset in range(0, len(whole), 7):
            # Elements are cut, too.
            size = min(37, len(whole) - offset)
            assert pool.read(again, offset, size) == whole[offset : offset + size]


def test_a_chunk_is_decoded_once_by_who_reads_in_order(plain):
    opened = open_checkpoint(plain)
    source = opened.sources[list(opened).index(KERNEL)]
    whole = opened.read(KERNEL).tobytes()
    assert (opened.extras.held, opened.extras.decoded) == (6 * 8 * 4, 6 * 8 * 4)
    with Pool() as pool:
        for row in range(12):
            found = pool.read(source, row * 32, 32)
            assert found == whole[row * 32 : row * 32 + 32]
            # What is read later of this row of tiles can only be what was kept.
            for chunk in ("0.0", "0.1") if row < 6 else ("1.0", "1.1"):
                (kernel_of(plain) / chunk).unlink(missing_ok=True)


def test_chunks_that_are_kept_count_as_memory(tmp_path):
    inputs = [FILES / "plain" / step for step in ("10", "20")]
    args = ("average", *inputs, "-o", tmp_path / "out.safetensors", "--memory")
    found = swavg(*args, "65kB")
    assert found.returncode == 2
    # A row of tiles for each input, and two while one is decoded.
    assert f"of these {4 * 6 * 8 * 4} for chunks that are decoded" in found.stderr
    done(*args, "1MB")
    ample = (tmp_path / "out.safetensors").read_bytes()
    done("average", *inputs, "-o", tmp_path / "many.safetensors", "--threads", "8")
    assert (tmp_path / "many.safetensors").read_bytes() == ample


def written_large(path, value):
    """An array of 700 x 600 in chunks of 512 x 256, whose rows are kept on disk."""
    array = np.arange(700 * 600, dtype=np.float32).reshape(700, 600) * value
    write_array(path, array, (512, 256))
    return array


@pytest.mark.parametrize("room", [True, False])
def test_large_rows_of_chunks_are_kept_on_disk_as_far_as_there_is_room(tmp_path, monkeypatch, room):
    if not room:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    array = written_large(tmp_path / "in", 1)
    opened = open_checkpoint(tmp_path / "in")
    # Chunks are padded.
    assert (opened.extras.held, opened.extras.decoded) == (0, 512 * 768 * 4)
    (source,) = opened.sources
    assert opened.read("w").tobytes() == array.tobytes()
    data, step = array.tobytes(), 100_003
    with Pool() as pool:
        # Of each row of chunks the rest can only be what was kept, also across its end.
        for start in range(0, len(data), step):
            assert pool.read(source, start, min(step, len(data) - start)) == data[start:][:step]
            row = 0 if start < 512 * 600 * 4 else 1
            if row == 0 and start + step >= 512 * 600 * 4:
                continue
            for chunk in (tmp_path / "in/w").glob(f"{row}.*"):
                chunk.unlink()
        assert pool.read(source, 0, 9) == data[:9]


def test_what_is_kept_on_disk_is_averaged_as_it_is(tmp_path):
    arrays = [written_large(tmp_path / f"in-{value}", value) for value in (1, 2, 4)]
    inputs = [tmp_path / f"in-{value}" for value in (1, 2, 4)]
    done("average", *inputs, "-o", tmp_path / "out.safetensors")
    found = open_checkpoint(tmp_path / "out.safetensors").read("w")
    np.testing.assert_array_equal(found, np.mean(arrays, axis=0, dtype=np.float64).astype("f4"))
