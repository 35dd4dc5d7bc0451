"""Checkpoints in a store are averaged as those of this machine are: the very same bytes come out,
and no more than these are fetched."""

import shutil

import composites
import h5py
import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from bundles import write as write_bundle
from checkpoints import state
from command_line import done, swavg
from framework_files import FRAMEWORKS
from make import arrays, sharded
from zero_folders import zero_folder

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def safetensors_file(path, i):
    arrays(path.with_suffix(".safetensors"), i)


def shards(path, i):
    made = [
        {f"{part}{n}": np.full((3, 5), i + n, np.float32) for n in range(4)} for part in ("a", "b")
    ]
    names = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
    sharded(path, dict(zip(names, made, strict=True)), config__json="{}", vocab__txt="words")


def torch_file(path, i):
    optimizer = {"state": {0: {"exp_avg": torch.ones(40, 40)}}}
    torch.save({"model": state(i), "optimizer": optimizer, "step": i}, path.with_suffix(".pt"))


def transposed(path, i):
    tensors = state(i)
    if i == 2:
        tensors["head.weight"] = tensors["head.weight"].t().contiguous().t()
    torch.save(tensors, path.with_suffix(".pt"))


def legacy(path, i):
    torch.save(state(i), path.with_suffix(".pth"), _use_new_zipfile_serialization=False)


def pickled(path, i):
    content = {"model": state(i), "extra": {"mean": np.arange(40.0) + i}}
    torch.save(content, path.with_suffix(".pt"))


def npz(path, i):
    np.savez(path.with_suffix(".npz"), w=np.full((30, 40), i, np.float32), b=np.zeros(3))


def deflated(path, i):
    np.savez_compressed(path.with_suffix(".npz"), w=np.full((30, 40), i, np.float32))


def hdf5(path, i):
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        file.create_dataset("layer/w", data=np.full((30, 40), i, np.float32))
        file.create_dataset("layer/c", data=np.full((30, 40), i, np.float32), chunks=(10, 10))


def bundle(path, i):
    write_bundle(path, {"w": np.full((30, 40), i, np.float32), "b": np.ones(3, np.float32)})


def distributed(path, i):
    dcp.save({"model": state(i)}, checkpoint_id=path, no_dist=True)


def zero(path, i):
    zero_folder(path, {"w": torch.full((3, 5), float(i)), "b": torch.ones(7)})


def of_parts(make):
    def write(path, i):
        composites.write(path, make(i))

    write.__name__ = make.__name__
    return write


def flax(path, i):
    files = sorted(file for file in (FRAMEWORKS / "flax" / "files").glob("*.msgpack"))
    shutil.copy(files[0], path.with_suffix(".msgpack"))


MADE = (
    safetensors_file, shards, torch_file, transposed, legacy, pickled, npz, deflated, hdf5, bundle,
    distributed, zero, flax, of_parts(composites.llama), of_parts(composites.pipeline),
    of_parts(composites.modules),
)  # fmt: skip


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_every_format_is_averaged_as_from_this_machine(make, bucket, tmp_path):
    local = tmp_path / "run"
    local.mkdir()
    for i in (1, 2):
        make(local / f"step-{i}", i)
    names = sorted(path.name for path in local.iterdir() if path.suffix != ".json")
    remote, output = bucket.put(local), "out" if (local / names[0]).is_dir() else "out.safetensors"
    found = []
    for folder, place in ((local, tmp_path / "here"), (remote, tmp_path / "there")):
        place.mkdir()
        paths = [f"{folder}/{name}" for name in names]
        done("average", *paths, "-o", place / output, "--lenient", "-w", 0.3, 0.7)
        done("inspect", paths[0])
        told = [done("list", folder, "--json").stdout, swavg("diff", *paths, "--json").stdout]
        found.append([text.replace(str(folder), "") for text in told])
    assert found[0] == found[1]
    done("diff", tmp_path / "here" / output, tmp_path / "there" / output)
    files = [
        {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}
        for place in (tmp_path / "here", tmp_path / "there")
    ]
    assert files[0].keys() == files[1].keys()
    for name, path in files[0].items():
        if path.suffix in (".json", ".txt", ".model") and "swavg" not in name:
            assert path.read_bytes() == files[1][name].read_bytes()
