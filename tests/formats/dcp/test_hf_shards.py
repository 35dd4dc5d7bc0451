"""Shards for Hugging Face, as torch writes them on several ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pytest
from safetensors.numpy import save_file
from safetensors_files import read_safetensors, write_safetensors

import swavg
from swavg.dtypes import BY_NAME
from swavg.errors import InputError
from swavg.formats.table import FORMATS
from swavg.testing import DTYPES, Ability, FormatTests


def shard(folder, rank, tensors, offsets, **changed):
    """The shard of a rank: its parts of tensors, and where each begins."""
    folder.mkdir(parents=True, exist_ok=True)
    info = {name: {"saved_offsets": list(start)} for name, start in offsets.items()}
    metadata = {"DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(info), "format": "pt"}
    path = folder / f"shard-{rank:05d}-model-00001-of-00001.safetensors"
    save_file(tensors, path, {**metadata, **changed})


class TestShards(FormatTests):
    """Each tensor in two shards, by rows."""

    format = FORMATS["hf-shards"]
    suffix = ""
    dtypes = tuple(name for name in DTYPES if BY_NAME[name].safetensors)
    lacks: ClassVar[Mapping[Ability, str]] = {
        "extras": "an average is a file of another format",
        "golden": "what torch wrote is in tests/frameworks",
        "order": "the library sorts tensors by dtype and name",
        "strides": "tensors are row-major",
        "ties": "each name has bytes of its own",
    }

    def write(self, path, tensors):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        for rank in (1, 2):
            cuts = {name: rows_of(array, rank) for name, array in tensors.items()}
            parts = {
                name: np.ascontiguousarray(tensors[name][cut]) if tensors[name].ndim
                else tensors[name]
                for name, cut in cuts.items()
                if tensors[name].ndim or rank == 1
            }  # fmt: skip
            offsets = {
                name: {"saved_offsets": [cuts[name].start, *[0] * (part.ndim - 1)][: part.ndim]}
                for name, part in parts.items()
            }
            name = f"shard-{rank:05d}-model-00001-of-00001.safetensors"
            metadata = {"DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
            write_safetensors(path / name, parts, metadata)

    def read(self, path):
        if not path.is_dir():
            return read_safetensors(path)
        first, second = (read_safetensors(file) for file in sorted(path.iterdir()))
        return {
            name: np.concatenate([part, second[name]]) if part.ndim else part
            for name, part in first.items()
        }

    def _out(self, folder):
        return folder / "out.safetensors"


def rows_of(array, rank):
    """The rows of a tensor that a rank has."""
    rows = len(array) if array.ndim else 0
    return slice(0, (rows + 1) // 2) if rank == 1 else slice((rows + 1) // 2, rows)


WHOLE = np.arange(24, dtype=np.float32).reshape(4, 6)


def written(folder, cuts):
    for rank, rows in enumerate(cuts, 1):
        shard(folder, rank, {"w": WHOLE[rows].copy()}, {"w": (rows.start, 0)})
    return folder


def refused(folder, problem):
    with pytest.raises(InputError, match=problem):
        swavg.open_checkpoint(folder)


def test_parts_of_any_ranks_are_one_tensor(tmp_path):
    folder = written(tmp_path / "a", [slice(0, 3), slice(3, 4), slice(4, 4)])
    checkpoint = swavg.open_checkpoint(folder)
    np.testing.assert_array_equal(checkpoint.read("w"), WHOLE)
    assert (checkpoint.format, dict(checkpoint.metadata)) == ("hf-shards", {"format": "pt"})
    # torchtitan has them in a folder of the step's.
    written(tmp_path / "step-1/sharded", [slice(0, 4)])
    np.testing.assert_array_equal(swavg.open_checkpoint(tmp_path / "step-1").read("w"), WHOLE)


def test_joined_files_are_taken_where_there_are_some(tmp_path):
    written(tmp_path / "step-1/sharded", [slice(0, 4)])
    save_file({"w": WHOLE + 1}, tmp_path / "step-1/model.safetensors")
    checkpoint = swavg.open_checkpoint(tmp_path / "step-1")
    np.testing.assert_array_equal(checkpoint.read("w"), WHOLE + 1)


def test_parts_that_leave_a_hole_or_overlap_are_refused(tmp_path):
    written(tmp_path / "a", [slice(0, 1), slice(2, 4)])
    refused(tmp_path / "a", "'w' is not whole: its chunks leave out 6 of 24 elements")
    written(tmp_path / "b", [slice(0, 3), slice(2, 4)])
    refused(tmp_path / "b", "'w' is not whole: its chunks overlap")


def test_a_rank_that_is_missing_is_told(tmp_path):
    shard(tmp_path / "a", 2, {"w": WHOLE}, {"w": (0, 0)})
    assert swavg.open_checkpoint(tmp_path / "a").notes == (
        "there is no shard of rank 1: are all here?",
    )
    name = "shard-00002-model-00001-of-00001.safetensors"
    (tmp_path / "a" / name).rename(tmp_path / "a/shard-00001-model-00003-of-00003.safetensors")
    assert swavg.open_checkpoint(tmp_path / "a").notes == (
        "there is no shard numbered 1, 2: are all here?",
    )


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        ("[", "cannot be read"),
        ('{"w": 1}', "cannot be read"),
        ('{"w": {"saved_offsets": [-1, 0]}}', "an impossible offset"),
        ('{"w": {"saved_offsets": [0]}}', "an offset of other dimensions"),
        ('{"w": {"saved_offsets": [4611686018427387903, 0]}}', "leave out"),
    ],
)
def test_offsets_that_lie_are_refused(tmp_path, info, problem):
    shard(tmp_path / "a", 1, {"w": WHOLE}, {}, DCP_SHARDING_INFO=info)
    refused(tmp_path / "a", problem)


def test_other_dtypes_in_some_shards_are_refused(tmp_path):
    written(tmp_path / "a", [slice(0, 2)])
    shard(tmp_path / "a", 2, {"w": WHOLE[2:].astype(np.float64)}, {"w": (2, 0)})
    refused(tmp_path / "a", "other dtypes or dimensions")


def test_the_file_of_one_of_several_ranks_is_no_checkpoint(tmp_path):
    for step in ("a", "b"):
        written(tmp_path / step, [slice(0, 2), slice(2, 4)])
    files = [tmp_path / step / "shard-00001-model-00001-of-00001.safetensors" for step in "ab"]
    with pytest.raises(InputError, match="is a part of a distributed checkpoint") as caught:
        swavg.average(files, output=tmp_path / "out.safetensors")
    assert caught.value.hint == "Give its folder."
    # All of a run on one rank are in one file.
    written(tmp_path / "c", [slice(0, 4)])
    alone = swavg.open_checkpoint(tmp_path / "c" / files[0].name)
    np.testing.assert_array_equal(alone.read("w"), WHOLE)
