"""Hashes in metadata: those of the weights go, those of other things stay."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from make import sharded

import swavg
from swavg.formats.hashes import is_stale


@pytest.mark.parametrize(
    "name",
    [
        "sshs_model_hash",
        "sshs_legacy_hash",
        "modelspec.hash_sha256",
        "sha256",
        "SHA256",
        "weights-md5",
        "modelHash",
        "tensor.checksum",
        "digest",
        "blake3",
    ],
)
def test_hashes_of_the_weights_are_stale(name: str) -> None:
    assert is_stale(name)


@pytest.mark.parametrize(
    "name",
    [
        "ss_sd_model_hash",
        "ss_new_sd_model_hash",
        "ss_vae_hash",
        "ss_training_comment",
        "base_model_sha256",
        "git_commit_hash",
        "dataset.md5",
        "config_digest",
        "modelspec.title",
        "hashtags",
        "share",
        "format",
    ],
)
def test_other_entries_are_not(name: str) -> None:
    assert not is_stale(name)


def test_a_file_is_written_without_its_old_hashes(tmp_path: Path) -> None:
    for i in range(2):
        metadata = {"sshs_model_hash": str(i), "ss_vae_hash": "v", "modelspec.hash_sha256": "0x0"}
        safetensors.numpy.save_file({"w": np.float32([i])}, tmp_path / f"{i}", metadata)
    report = swavg.average([tmp_path / "0", tmp_path / "1"], output=tmp_path / "o.safetensors")
    with safetensors.safe_open(tmp_path / "o.safetensors", "numpy") as file:
        assert set(file.metadata()) == {"format", "ss_vae_hash", "swavg"}
    assert report.notes == (
        "left out of the metadata, as hashes of other weights: modelspec.hash_sha256,"
        " sshs_model_hash",
    )


def test_an_index_is_written_without_its_old_hashes(tmp_path: Path) -> None:
    shards = {
        f"model-0000{i}-of-00002.safetensors": {f"w{i}": np.ones(3, np.float32)} for i in (1, 2)
    }
    for name in "ab":
        folder = Path(sharded(tmp_path / name, shards))
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        # 5 of the 6 are parameters, the other one is a buffer.
        index["metadata"] |= {"total_parameters": 5, "sha256": "0", "base_model_sha256": "1"}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    made = tmp_path / "o" / "model.safetensors.index.json"
    kept = {"total_size": 24, "total_parameters": 5, "base_model_sha256": "1"}
    swavg.average([tmp_path / "a", tmp_path / "b"], output=tmp_path / "o")
    assert json.loads(made.read_text())["metadata"] == kept
    left_out = swavg.Policy(exclude=("w1",), drop_excluded=True)
    swavg.average(
        [tmp_path / "a", tmp_path / "b"], output=tmp_path / "o", policy=left_out, force=True
    )
    less = kept | {"total_size": 12, "total_parameters": 2}
    assert json.loads(made.read_text())["metadata"] == less
