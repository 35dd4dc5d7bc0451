"""Checkpoints in other formats: the bytes of tensors stay."""

import numpy as np
import pytest
import torch
from checkpoints import load, run_request, save, state
from zero_folders import zero_folder

import swavg
from swavg import MismatchError, NumericsError, Policy, open_checkpoint
from swavg.engine.recipe import recipe_of
from swavg.methods import convert


@pytest.fixture
def tensors():
    nan = torch.tensor([0x7FC00001, -0x3FFFFE, 0x7F800000], dtype=torch.int32).view(torch.float32)
    return state(0) | {"nan": nan, "half": torch.tensor([1.5, -0.0]).bfloat16()}


def converted(path, out, **policy):
    return run_request(convert(path, policy=Policy(**policy)), str(out))[0]


def bits(path):
    opened = open_checkpoint(path)
    return {name: (str(opened[name].dtype), opened[name][...].tobytes()) for name in opened}


@pytest.mark.parametrize("first", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("to", ["b.pt", "b.safetensors", "folder/"])
def test_no_bit_of_a_tensor_changes(tmp_path, tensors, first, to):
    path = tmp_path / first
    torch.save(tensors, path) if first.endswith(".pt") else save(path, tensors)
    report = converted(path, f"{tmp_path}/{to}")
    assert bits(report.output) == bits(path)
    assert report.recipe["method"] == "copy"
    assert not report.warnings


def test_what_a_file_says_of_itself_is_kept(tmp_path, tensors):
    path = save(tmp_path / "a.safetensors", tensors, {"format": "pt", "val_loss": "0.25"})
    converted(path, tmp_path / "b.safetensors")
    assert open_checkpoint(tmp_path / "b.safetensors").metadata == {
        "format": "pt",
        "val_loss": "0.25",
    }
    torch.save({"model": state(1), "epoch": 3}, tmp_path / "c.pt")
    converted(tmp_path / "c.pt", tmp_path / "d.pt")
    assert torch.load(tmp_path / "d.pt")["epoch"] == 3


def test_an_average_stays_one(tmp_path):
    paths = [save(tmp_path / f"{n}.safetensors", state(n)) for n in (1, 2)]
    from swavg import average

    average(paths, output=tmp_path / "avg.safetensors")
    converted(tmp_path / "avg.safetensors", tmp_path / "avg.pt")
    assert recipe_of(tmp_path / "avg.pt") == recipe_of(tmp_path / "avg.safetensors")
    assert recipe_of(tmp_path / "avg.pt")["n"] == 2


def test_codes_stay_together_with_their_scales(tmp_path):
    codes = torch.arange(12, dtype=torch.float32).to(torch.float8_e4m3fn).reshape(3, 4)
    tensors = {"l.weight": codes, "l.weight_scale": torch.rand(3, 1)}
    path = save(tmp_path / "a.safetensors", tensors)
    report = converted(path, tmp_path / "b.pt")
    assert bits(report.output) == bits(path)
    with pytest.raises(MismatchError, match="quantised weights, and dtype=bfloat16 would change"):
        converted(path, tmp_path / "c.pt", dtype="bfloat16")


def test_another_dtype_is_rounded_once_and_checked(tmp_path, tensors):
    path = save(tmp_path / "a.safetensors", state(0))
    converted(path, tmp_path / "b.safetensors", dtype="float16")
    found, expected = load(tmp_path / "b.safetensors"), load(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        wanted = tensor.half() if tensor.is_floating_point() else tensor
        assert torch.equal(found[name], wanted)
    path = save(tmp_path / "nan.safetensors", tensors)
    with pytest.raises(NumericsError, match="'nan' at"):
        converted(path, tmp_path / "c.safetensors", dtype="float16")


def test_ties_and_names(tmp_path):
    shared = torch.rand(2, 3)
    torch.save({"model.a": shared, "model.b": shared}, tmp_path / "a.pt")
    converted(tmp_path / "a.pt", tmp_path / "b.pt", strip_prefix=("model.",))
    found = torch.load(tmp_path / "b.pt")
    assert found["a"].data_ptr() == found["b"].data_ptr()
    np.testing.assert_array_equal(found["a"], shared)


def test_a_file_of_a_rank_without_its_weights_is_no_model(tmp_path):
    zero_folder(tmp_path / "global_step7", {"w": torch.ones(3)})
    path = tmp_path / "global_step7/zero_pp_rank_0_mp_rank_00_model_states.pt"
    out = tmp_path / "out.safetensors"
    for write in (converted, lambda *paths: swavg.average([paths[0]], output=paths[1])):
        with pytest.raises(MismatchError, match="weights are empty, as ZeRO-3 leaves them") as told:
            write(path, out)
        assert "Give the folder with the files of all ranks" in told.value.hint
    converted(path.parent, out)
    assert open_checkpoint(out)["w"][...].tolist() == [1, 1, 1]
