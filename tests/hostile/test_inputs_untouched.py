"""Inputs are read and never changed; a change under us is noticed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import planned

import swavg
from swavg.errors import InputError, OutputError

ROWS = 3000


def big(path: Path, value: float) -> Path:
    """Two tensors that take several tasks of 16 KiB."""
    array = np.full((ROWS, 16), value, np.float32)
    path.write_bytes(safetensors.numpy.save({"x": array, "y": array + 1}))
    return path


def pair(folder: Path) -> list[Path]:
    return [big(folder / "1.safetensors", 1), big(folder / "2.safetensors", 2)]


def facts(folder: Path) -> dict[str, tuple[bytes, int, int, int]]:
    """Bytes, inode, size and time of modification of every file."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            state = path.stat()
            found[str(path)] = (path.read_bytes(), state.st_ino, state.st_size, state.st_mtime_ns)
    return found


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def truncate_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def replace(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.rename(path)


CHANGES = [append, overwrite, truncate, truncate_to_nothing, touch, replace, Path.unlink]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("at", ["the first chunk", "the last chunk"])
def test_an_input_that_changes_while_it_is_read_is_an_input_error(
    tmp_path: Path, change: Callable[[Path], None], at: str
) -> None:
    inputs = pair(tmp_path)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "out.safetensors"
    done = []

    def on_progress(progress: Any) -> None:
        if not done and (at == "the first chunk" or progress.read == progress.total):
            done.append(progress)
            change(inputs[1])

    plan = planned(inputs, out, cut=1 << 14)
    with pytest.raises(InputError) as caught:
        swavg.execute(plan, swavg.Resources(threads=1), on_progress)
    assert done
    assert caught.value.path == str(inputs[1])
    assert os.listdir(out.parent) == []


@pytest.mark.parametrize("change", [append, truncate, touch])
def test_a_changed_input_leaves_the_old_output(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    inputs = pair(tmp_path)
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    with pytest.raises(InputError):
        swavg.average(inputs, output=out, force=True, on_progress=lambda _: change(inputs[0]))
    assert out.read_bytes() == b"old"
    assert make.debris(tmp_path) == []


def test_an_input_that_changes_between_planning_and_running_is_an_input_error(
    tmp_path: Path,
) -> None:
    inputs = pair(tmp_path)
    plan = planned(inputs, tmp_path / "out.safetensors")
    overwrite(inputs[0])
    with pytest.raises(InputError, match="changed while it was read"):
        swavg.execute(plan)
    assert sorted(os.listdir(tmp_path)) == ["1.safetensors", "2.safetensors"]


def test_a_shard_that_changes_is_an_input_error(tmp_path: Path) -> None:
    name = "model-00001-of-00001.safetensors"
    shards = {name: {"x": np.ones(5, np.float32)}}
    one, two = (make.sharded(tmp_path / folder, shards) for folder in ("one", "two"))
    with pytest.raises(InputError, match="changed while it was read") as caught:
        swavg.average(
            [one, two], output=tmp_path / "out", on_progress=lambda _: append(Path(one, name))
        )
    assert caught.value.path == os.path.join(one, name)
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_inputs_are_the_same_after_an_average(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    inputs: list[str | Path] = [*pair(tmp_path / "in")]
    shard = {"model.safetensors": {"x": np.ones((ROWS, 16), np.float32)}}
    inputs.append(make.sharded(tmp_path / "in" / "folder", shard, config__json="{}"))
    before = facts(tmp_path / "in")
    policy = swavg.Policy(strict=False)
    swavg.average(inputs, output=tmp_path / "out.safetensors", policy=policy)
    swavg.average(inputs, output=tmp_path / "out", policy=policy)
    assert facts(tmp_path / "in") == before


def same(path: Path) -> Path:
    return path


def hard_link(path: Path) -> Path:
    link = path.with_name("link.safetensors")
    os.link(path, link)
    return link


def symbolic_link(path: Path) -> Path:
    link = path.with_name("link.safetensors")
    link.symlink_to(path.name)
    return link


def roundabout(path: Path) -> Path:
    return path.parent / ".." / path.parent.name / path.name


@pytest.mark.parametrize("name", [same, hard_link, symbolic_link, roundabout])
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("which", [0, 1])
def test_an_output_onto_an_input_is_refused(
    tmp_path: Path, name: Callable[[Path], Path], force: bool, which: int
) -> None:
    inputs = pair(tmp_path)
    out = name(inputs[which])
    before = facts(tmp_path)
    with pytest.raises(OutputError, match="is an input"):
        swavg.average(inputs, output=out, force=force)
    assert facts(tmp_path) == before
    assert make.debris(tmp_path) == []


@pytest.mark.parametrize("force", [False, True])
def test_an_output_onto_what_an_input_links_to_is_refused(tmp_path: Path, force: bool) -> None:
    inputs = pair(tmp_path)
    (tmp_path / "link").symlink_to(inputs[0].name)
    with pytest.raises(OutputError, match="is an input"):
        swavg.average([tmp_path / "link", inputs[1]], output=inputs[0], force=force)
    assert safetensors.numpy.load_file(inputs[0])["x"][0, 0] == 1


@pytest.mark.parametrize("force", [False, True])
def test_an_output_onto_a_shard_of_an_input_is_refused(tmp_path: Path, force: bool) -> None:
    shards = {"model.safetensors": {"x": np.ones(5, np.float32)}}
    one, two = (make.sharded(tmp_path / folder, shards) for folder in ("one", "two"))
    (Path(one) / "model.safetensors.index.json").unlink()
    before = facts(tmp_path)
    for out in (Path(one, "model.safetensors"), Path(one)):
        with pytest.raises(OutputError):
            swavg.average([one, two], output=out, force=force)
    assert facts(tmp_path) == before


def test_an_input_may_count_twice(tmp_path: Path) -> None:
    one, two = pair(tmp_path)
    report = swavg.average([one, two, one], output=tmp_path / "out.safetensors")
    assert "1.safetensors is the same file as 1.safetensors: it counts twice" in report.notes
    mean = safetensors.numpy.load_file(tmp_path / "out.safetensors")["x"]
    np.testing.assert_array_equal(mean, np.full((ROWS, 16), np.float32(4 / 3)))


_FEW_FILES = """
import resource, sys
import swavg
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
*inputs, output = sys.argv[1:]
swavg.average(inputs, output=output)
"""


@pytest.mark.slow
def test_twenty_inputs_of_a_hundred_shards_need_few_open_files(tmp_path: Path) -> None:
    count, shards = 20, [f"model-{i:05d}-of-00100.safetensors" for i in range(1, 101)]
    values = np.random.default_rng(0).standard_normal((count, len(shards), 6)).astype(np.float32)
    paths = [
        make.sharded(
            tmp_path / f"in{index}",
            {name: {f"layer.{at}": values[index, at]} for at, name in enumerate(shards)},
        )
        for index in range(count)
    ]
    done = make.python(_FEW_FILES, *paths, str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    mean = (values.astype(np.float64).sum(axis=0) / count).astype(np.float32)
    for at, name in enumerate(shards):
        found = safetensors.numpy.load_file(tmp_path / "out" / name)
        np.testing.assert_array_equal(found[f"layer.{at}"], mean[at])
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {f"layer.{at}": name for at, name in enumerate(shards)}
