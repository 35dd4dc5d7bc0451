"""Folders that each trainer's own saver wrote on two ranks (tests/frameworks/dcp/write.py)."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from command_line import done
from command_line import swavg as run_swavg

import swavg
from swavg.formats.dcp.metadata import read_metadata
from swavg.formats.dcp.model_part import find_model
from swavg.formats.dcp.place import find_place
from swavg.series import discover

FILES = Path(__file__).parents[2] / "frameworks/dcp/files.tar.xz"
RUNS = {
    "plain": "plain-{}",
    "app": "app-{}",
    "torchtitan": "torchtitan/step-{}",
    "lightning": "lightning/epoch=0-step={}.ckpt",
    "olmo": "olmo/step{}",
    "accelerate": "accelerate/checkpoint-{}",
    "megatron": "megatron/iter_00000{}",
}
LEFT = {
    "plain": {"optim"},
    "app": set(),
    "torchtitan": {"train_state", "optimizer", "lr_scheduler", "dataloader"},
    "lightning": {"optimizer_0"},
    "olmo": {"optim"},
    "accelerate": set(),
    "megatron": {"optimizer"},
}
SIDE = {
    "plain": set(),
    "app": set(),
    "torchtitan": set(),
    "lightning": {"meta.pt"},
    "olmo": {".metadata.json", "train/rank0.pt"},
    "accelerate": {
        "scheduler.bin", "optimizer_0/.metadata", "optimizer_0/__0_0.distcp",
        "optimizer_0/__1_0.distcp",
    },
    "megatron": {"common.pt", "metadata.json"},
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    with tarfile.open(FILES) as files:
        files.extractall(folder, filter="data")
    return folder


def expected(written, name):
    """The model's arrays of a checkpoint; bfloat16 as float32."""
    with np.load(written / "expected.npz") as arrays:
        return {key[len(name) + 1 :]: arrays[key] for key in arrays if key.startswith(name + "/")}


def arrays_of(path):
    checkpoint = swavg.open_checkpoint(path)
    return {
        name: checkpoint.read(name).astype(np.float32)
        if checkpoint.tensors[name].spec.dtype.floating
        else checkpoint.read(name)
        for name in checkpoint
    }


def assert_equal(found, arrays):
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, name)


def bytes_of(folder, saved, name):
    """The bytes of each chunk of a tensor or an object, with where it begins."""
    tensor = saved.tensors.get(name)
    chunks = [(None, saved.objects[name])] if tensor is None else [
        (chunk.start, chunk.place) for chunk in tensor.chunks
    ]  # fmt: skip
    found = {}
    for start, place in chunks:
        data = (Path(folder) / saved.files[place.file]).read_bytes()
        found[start] = data[place.offset : place.offset + place.length]
    return found


@pytest.mark.parametrize("run", RUNS)
def test_the_model_is_found_and_read(written, run):
    for step in (10, 20):
        name = RUNS[run].format(step)
        checkpoint = swavg.open_checkpoint(written / name)
        assert checkpoint.format == "dcp"
        assert_equal(arrays_of(written / name), expected(written, name))
        assert set(checkpoint.extras.others) == LEFT[run]
        assert set(checkpoint.extras.template.side_files) == SIDE[run]


@pytest.mark.parametrize("run", RUNS)
def test_an_average_is_a_folder_like_the_last_with_all_else_kept(written, tmp_path, run):
    inputs = [written / RUNS[run].format(step) for step in (10, 20)]
    out = tmp_path / "out"
    swavg.average(inputs, output=out)
    first, last = (expected(written, RUNS[run].format(step)) for step in (10, 20))
    averaged = arrays_of(out)
    dtypes = swavg.open_checkpoint(out).tensors
    for name, array in last.items():
        mean = (first[name].astype(np.float64) + array) / 2
        if dtypes[name].spec.dtype.floating:
            mean = mean.astype(dtypes[name].spec.dtype.numpy()).astype(np.float32)
            np.testing.assert_array_equal(averaged[name], mean, name)
    # All else, byte for byte, and under the same names.
    source, made = find_place(str(inputs[1])), find_place(str(out))
    assert source.inner == made.inner
    had, has = read_metadata(source.folder), read_metadata(made.folder)
    assert set(has.tensors) == set(had.tensors)
    assert set(has.objects) == set(had.objects)
    assert has.paths == had.paths
    model = find_model(source.folder, had).names.values()
    for name in {*had.tensors, *had.objects} - set(model):
        assert bytes_of(made.folder, has, name) == bytes_of(source.folder, had, name), name
    for name in SIDE[run]:
        assert (out / name).read_bytes() == (inputs[1] / name).read_bytes()
    recipe = json.loads((Path(made.folder) / "swavg.json").read_text())
    assert recipe["weights"] == [0.5, 0.5]
    assert swavg.open_checkpoint(out).extras.recipe is not None


@pytest.mark.parametrize("run", ["olmo", "accelerate"])
def test_the_inner_folder_is_a_checkpoint_too(written, run):
    name = RUNS[run].format(10)
    place = find_place(str(written / name))
    assert place.inner
    assert_equal(arrays_of(place.folder), expected(written, name))


def test_steps_are_known_from_inside(written):
    steps = {
        run: swavg.open_checkpoint(written / RUNS[run].format(20)).extras.scalars
        for run in ("torchtitan", "lightning", "megatron")
    }
    assert steps["torchtitan"]["step"] == 20
    assert steps["torchtitan"]["ntokens_seen"] == 2000
    assert steps["lightning"]["global_step"] == 20
    assert steps["megatron"]["iteration"] == 20


def test_another_state_dict_is_chosen_by_its_key(written):
    checkpoint = swavg.open_checkpoint(written / "plain-10", key="optim.state")
    assert "up.weight.momentum_buffer" in checkpoint
    with pytest.raises(swavg.InputError, match=r"has no 'other'.*There are: 'model', 'optim'"):
        swavg.open_checkpoint(written / "plain-10", key="other")


def test_the_dtype_of_the_output_is_in_its_metadata(written, tmp_path):
    inputs = [written / f"plain-{step}" for step in (10, 20)]
    swavg.average(inputs, output=tmp_path / "out", policy=swavg.Policy(dtype="float16"))
    saved = read_metadata(str(tmp_path / "out"))
    assert saved.tensors["model.up.weight"].dtype == "float16"
    assert saved.tensors["optim.state.up.weight.momentum_buffer"].dtype == "bfloat16"


def test_only_the_weights_are_written_if_asked_for(written, tmp_path):
    inputs = [written / "torchtitan" / f"step-{step}" for step in (10, 20)]
    swavg.average(inputs, output=tmp_path / "out", policy=swavg.Policy(weights_only=True))
    saved = read_metadata(str(tmp_path / "out"))
    assert set(saved.tensors) == set(expected(written, "torchtitan/step-20"))
    assert not saved.objects
    assert sorted(os.listdir(tmp_path / "out")) == [".metadata", "__0_0.distcp", "swavg.json"]


def test_a_distributed_checkpoint_becomes_a_safetensors_file_and_back(written, tmp_path):
    inputs = [written / f"plain-{step}" for step in (10, 20)]
    file, folder = tmp_path / "out.safetensors", tmp_path / "out"
    swavg.average(inputs, output=file)
    report = swavg.average([file], output=folder, policy=swavg.Policy(format="dcp"))
    assert report.output == str(folder)
    assert_equal(arrays_of(folder), arrays_of(file))
    saved = read_metadata(str(folder))
    assert saved.paths == {name: (name,) for name in saved.tensors}


def test_shards_for_hugging_face_are_joined(written, tmp_path):
    inputs = [written / "shards" / f"step-{step}" for step in (10, 20)]
    for step, path in zip((10, 20), inputs, strict=True):
        assert_equal(arrays_of(path), expected(written, f"shards/step-{step}"))
    swavg.average(inputs, output=tmp_path / "out.safetensors")
    made = swavg.open_checkpoint(tmp_path / "out.safetensors")
    assert set(made.metadata) == {"format", "swavg"}


@pytest.mark.parametrize(
    ("trainer", "step", "inner"),
    [
        ("torchtitan", "step-", ""),
        ("olmo", "step", "model_and_optim"),
        ("accelerate", "checkpoint-", "pytorch_model_fsdp_0"),
    ],
)
def test_the_newest_of_a_run_is_passed_over_if_it_is_not_finished(
    written, tmp_path, trainer, step, inner
):
    run = tmp_path / "run"
    shutil.copytree(written / trainer, run)
    shutil.copytree(run / f"{step}20", run / f"{step}30")
    (run / f"{step}30" / inner / ".metadata").unlink()
    found = done("average", run, "--last", "2", "-o", tmp_path / "out")
    assert f"ignored {step}30: not finished: there is no .metadata yet" in found.stderr
    recipe = json.loads((tmp_path / "out" / inner / "swavg.json").read_text())
    assert recipe["inputs"] == [f"{step}10", f"{step}20"]


@pytest.mark.parametrize("trainer", ["torchtitan", "olmo", "accelerate", "lightning", "megatron"])
def test_a_run_is_found_below_the_folder_of_its_output(written, tmp_path, trainer):
    shutil.copytree(written / trainer, tmp_path / "outputs/checkpoint")
    unfinished = tmp_path / "outputs/checkpoint/step-30"
    unfinished.mkdir()
    (unfinished / "__0_0.distcp").write_bytes(b"x")
    (tmp_path / "outputs/tensorboard").mkdir()
    (tmp_path / "outputs/tensorboard/events.out").write_bytes(b"x")
    series = discover([tmp_path])
    assert [os.path.dirname(each.path) for each in series.snapshots] == [
        str(tmp_path / "outputs/checkpoint")
    ] * 2
    assert series.steps == (10, 20)


def test_a_run_of_nothing_else_is_not_finished(written, tmp_path):
    shutil.copytree(written / "torchtitan/step-20", tmp_path / "run/step-20")
    (tmp_path / "run/step-20/.metadata").unlink()
    found = run_swavg("list", tmp_path / "run")
    assert (found.returncode, "step-20: has no .metadata" in found.stderr) == (4, True)
