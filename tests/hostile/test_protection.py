"""What --force and redirection must not destroy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import make
import numpy as np
import pytest
import safetensors.numpy

import swavg
from swavg.errors import OutputError


@pytest.mark.parametrize("force", [False, True])
def test_a_snapshot_of_links_that_is_an_input_is_not_replaced(tmp_path: Path, force: bool) -> None:
    for index, name in enumerate(["one", "two"]):
        make.arrays(tmp_path / "blobs" / name, index)
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").symlink_to(f"../blobs/{name}")
    with pytest.raises(OutputError):
        swavg.average([tmp_path / "one", tmp_path / "two"], output=tmp_path / "one", force=force)
    with pytest.raises(OutputError):
        swavg.average(
            [tmp_path / "one/model.safetensors", tmp_path / "two"],
            output=tmp_path / "one",
            policy=swavg.Policy(max_shard_size=100),
            force=force,
        )
    assert (tmp_path / "one" / "model.safetensors").is_symlink()


def test_force_does_not_remove_checkpoints_of_other_names(tmp_path: Path) -> None:
    paths = [make.arrays(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    make.arrays(tmp_path / "run" / "step-100.safetensors", 3)
    policy = swavg.Policy(max_shard_size=1 << 20)
    with pytest.raises(OutputError, match=r"step-100\.safetensors"):
        swavg.average(paths, output=tmp_path / "run", policy=policy, force=True)
    assert os.listdir(tmp_path / "run") == ["step-100.safetensors"]


def test_force_does_not_remove_what_came_meanwhile(tmp_path: Path) -> None:
    paths = [make.arrays(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    policy = swavg.Policy(max_shard_size=1 << 20)
    out = tmp_path / "out"
    swavg.average(paths, output=out, policy=policy)
    with pytest.raises(OutputError, match=r"notes\.md"):
        swavg.average(
            paths,
            output=out,
            policy=policy,
            force=True,
            on_progress=lambda _: (out / "notes.md").write_text("mine"),
        )
    assert (out / "notes.md").read_text() == "mine"
    assert make.debris(tmp_path) == []


def test_standard_output_onto_an_input_is_refused(tmp_path: Path) -> None:
    one, two = (make.arrays(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2))
    before = Path(one).read_bytes()
    with open(one, "ab") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "swavg", "average", one, two, "-o", "-"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
    assert done.returncode == 5
    assert b"is the input" in done.stderr
    assert Path(one).read_bytes() == before


def test_an_input_whose_name_is_no_utf_8_is_averaged(tmp_path: Path) -> None:
    one, two = (make.arrays(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2))
    odd = tmp_path / "\udcff.safetensors"
    os.rename(one, odd)
    swavg.average([odd, two], output=tmp_path / "out.safetensors")
    found = safetensors.numpy.load_file(tmp_path / "out.safetensors")["a.w"]
    first, second = (swavg.open_checkpoint(path).read("a.w") for path in (odd, two))
    mean = ((first.astype(np.float64) + second) / 2).astype(np.float32)
    np.testing.assert_array_equal(found, mean)
