"""ZeRO folders: what DeepSpeed wrote, the suite of all formats, and what they may lack."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_arrays import array_of, tensors_of
from zero_folders import joined, zero_folder

from swavg.engine.average import average
from swavg.errors import InputError
from swavg.formats import open_checkpoint
from swavg.formats.table import FORMATS
from swavg.planning.policy import Policy
from swavg.testing import DTYPES, FormatTests

FILES = Path(__file__).parents[2] / "frameworks/deepspeed/files"
RUNS = ["stage-1/global_step4", "stage-2/global_step2", "stage-3/global_step2",
        "stage-3/global_step4"]  # fmt: skip


def expected(run):
    """What DeepSpeed's zero_to_fp32 makes of a run's folder; bfloat16 as float32."""
    with np.load(FILES / "expected.npz") as arrays:
        return {n[len(run) + 1 :]: arrays[n] for n in arrays if n.startswith(f"{run}/")}


def held(path):
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.read(name) for name in checkpoint}


def assert_equal(found, arrays):
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].astype(array.dtype), array, err_msg=name)
        assert found[name].shape == array.shape, name


@pytest.mark.parametrize("run", RUNS)
def test_what_deepspeed_wrote_is_read_as_it_joins_it(run):
    assert_equal(held(FILES / run), expected(run))
    checkpoint = open_checkpoint(FILES / run)
    assert checkpoint.format == "zero"
    assert checkpoint.ties == (("embed.weight", "tied.weight"),)
    scalars = checkpoint.extras.scalars
    step = int(run[-1])
    assert (scalars["global_step"], scalars["epoch"]) == (step, step // 2)
    trained = {checkpoint[n].dtype.name for n in ("embed.weight", "up.weight", "up.bias", "scale")}
    assert trained == {"float32"}
    # Frozen weights have no masters: they stay what they are in training.
    of_frozen = "float32" if run.startswith("stage-1") else "bfloat16"
    assert checkpoint["frozen.weight"].dtype.name == of_frozen
    assert checkpoint["seen"].dtype.name == "int64"


def test_notes_say_what_was_taken():
    (note,) = open_checkpoint(FILES / "stage-1").notes
    assert note == (
        "took the float32 weights of 5 tensors from the files of 2 ranks; 'mean', 'seen',"
        " 'frozen.weight' from mp_rank_00_model_states.pt, as they have no masters"
    )
    (note,) = open_checkpoint(FILES / "stage-3/global_step4").notes
    assert note == (
        "took the float32 and bfloat16 weights of 6 tensors from the files of 2 ranks; 'mean',"
        " 'seen' from zero_pp_rank_0_mp_rank_00_model_states.pt, as they have no masters"
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_averages_are_those_of_what_was_joined(tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    average([FILES / run for run in RUNS[2:]], output=out)
    found = held(out)
    first, last = map(expected, RUNS[2:])
    for name in ("embed.weight", "up.weight", "up.bias", "head.weight", "scale", "mean"):
        mean = ((first[name].astype(np.float64) + last[name]) / 2).astype(np.float32)
        np.testing.assert_array_equal(found[name], mean, strict=True)
    assert found["seen"] == last["seen"]
    if suffix == ".pt":
        tensors = torch.load(out)
        assert tensors["tied.weight"].data_ptr() == tensors["embed.weight"].data_ptr()


class TestZero(FormatTests):
    """Float32 tensors have masters, others are buffers."""

    format = FORMATS["zero"]
    suffix = ""
    dtypes = ("float32", *(name for name in DTYPES if name != "float32"))
    lacks = {  # noqa: RUF012
        "extras": "an average is a file of another format",
        "golden": "what DeepSpeed wrote is in tests/frameworks",
        "order": "that of the model file, where buffers are behind",
        "strides": "masters are flat",
    }

    def write(self, path, tensors):
        shutil.rmtree(path, ignore_errors=True)
        first = {id(array): name for name, array in reversed(tensors.items())}
        ties = {
            name: first[id(array)]
            for name, array in tensors.items()
            if first[id(array)] != name and array.dtype == np.float32
        }
        own = {name: t for name, t in tensors_of(tensors).items() if name not in ties}
        masters = {name: tensor for name, tensor in own.items() if tensor.dtype == torch.float32}
        buffers = {name: tensor for name, tensor in own.items() if name not in masters}
        zero_folder(path, masters, buffers=buffers, ties=ties)

    def read(self, path):
        found = joined(path) if path.is_dir() else torch.load(path)
        return {name: array_of(tensor) for name, tensor in found.items()}

    def _out(self, folder):
        return folder / "out.pt"

    def _small(self, folder):
        # One of the optimizer: the model file is one as torch's suite has them.
        yield list(super()._small(folder))[-1]


def broken(tmp_path, change, *, stage=3, **options):
    """Why a folder is refused in which ``change`` spoils what is saved."""
    masters = {"w": torch.ones(5), "v": torch.ones(2, 3)}
    path = zero_folder(tmp_path / "a", masters, stage=stage, change=change, **options)
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(str(path))
    return caught.value.problem


@pytest.mark.parametrize(
    ("stage", "key", "value", "problem"),
    [
        (3, "zero_stage", 4, "tells no stage from 1 to 3"),
        (3, "zero_stage", None, "tells no stage from 1 to 3"),
        (3, "partition_count", 3, "is incomplete: files of 2 of 3 ranks are here"),
        (3, "partition_count", [], "no number of ranks"),
        (3, "partition_count", True, "no number of ranks"),
        (3, "fp32_flat_groups", [torch.ones(5)], "has 5 elements, and the rank's pieces of"),
        (3, "fp32_flat_groups", [torch.ones(7)], "has 7 elements, and the rank's pieces of"),
        (3, "fp32_flat_groups", [], "it has no masters"),
        (3, "fp32_flat_groups", [torch.arange(6)], "is no flat tensor of floats"),
        (3, "fp32_flat_groups", [torch.ones(12)[::2]], "is no flat tensor of floats"),
        (3, "fp32_flat_groups", ["text"], "fp32_flat_groups.0 is no tensor"),
        (3, "fp32_flat_groups", {}, "is no list"),
        (2, "single_partition_of_fp32_groups", [torch.ones(3)], "group 0 has 6 elements"),
        (2, "single_partition_of_fp32_groups", [torch.ones(20)], "group 0 has 40 elements"),
        (1, "single_partition_of_fp32_groups", [torch.ones(6)] * 2, "it has 2 groups"),
        (1, "single_partition_of_fp32_groups", [torch.ones(6).double(), torch.ones(6)], "not all"),
        (2, "param_alignment_paddings", [[1]], "does not tell the padding of each parameter"),
        (2, "param_alignment_paddings", [[-1, 0]], "does not tell the padding of each parameter"),
        (2, "param_alignment_paddings", [], None),
        (2, "param_alignment_paddings", [[4, 0]], "group 0 has 11 elements, its parameters 15"),
    ],
)
def test_optimizer_files_that_are_none_of_zero_are_refused(tmp_path, stage, key, value, problem):
    def change(name, content):
        if "optim" in name:
            content["optimizer_state_dict"][key] = value

    if problem is None:
        zero_folder(tmp_path / "a", {"w": torch.ones(5)}, stage=stage, change=change)
        assert len(open_checkpoint(tmp_path / "a")) == 1
    else:
        assert problem in broken(tmp_path, change, stage=stage)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("param_shapes", None, "'param_shapes' is no list"),
        ("param_shapes", [{"w": torch.Size([5])}], "has 6 elements, and the rank's pieces of"),
        ("param_shapes", [{"w": torch.Size([5]), "v": (-6,)}], "has no shape of 'v'"),
        ("param_shapes", [{"w": torch.Size([5]), "v": ("6",)}], "has no shape of 'v'"),
        ("param_shapes", [{"w": torch.Size([5]), "v": (1 << 61, 1 << 61)}], "has no shape of 'v'"),
        ("param_shapes", [{"w": torch.Size([5]), "v": (1,) * 33}], "has no shape of 'v'"),
        ("param_shapes", [{"w": (5,), "v": (6,)}, {"w": (0,)}], "a parameter is in two groups"),
        ("frozen_param_shapes", {"f": torch.Size([4])}, "frozen_param_fragments.f is no tensor"),
        ("module", {"x": torch.zeros(0)}, "'x' is spread over ranks, and is not among the masters"),
        ("module", [], "no tensors under 'module'"),
        ("shared_params", ["w"], "'shared_params' is no dictionary"),
        ("buffer_names", {"w": 1}, "'buffer_names' is no list"),
        ("ds_autoep_layers", [{"layer": 1}], "its experts are spread in other ways"),
    ],
)
def test_model_files_that_are_none_of_zero_are_refused(tmp_path, key, value, problem):
    def change(name, content):
        if "model" in name:
            content[key] = value

    assert problem in broken(tmp_path, change)


def test_the_optimizer_of_stage_1_in_bfloat16_does_not_tell_its_stage(tmp_path):
    def change(name, content):
        content.get("optimizer_state_dict", {}).pop("zero_stage", None)

    path = zero_folder(tmp_path / "a", {"w": torch.arange(5.0)}, stage=1, change=change)
    assert held(path)["w"].tolist() == [0, 1, 2, 3, 4]


def test_masters_of_several_dtypes_are_refused(tmp_path):
    def change(name, content):
        if "rank_1" in name and "optim" in name:
            state = content["optimizer_state_dict"]
            state["fp32_flat_groups"] = [each.double() for each in state["fp32_flat_groups"]]

    assert "its masters are not all float32 as the first" in broken(tmp_path, change)


def test_frozen_weights_that_are_cut_short_are_refused(tmp_path):
    def change(name, content):
        if "rank_1" in name and "model" in name:
            content["frozen_param_fragments"] = {"f": torch.ones(1)}

    frozen = {"f": torch.ones(4)}
    assert "its piece of 'f' has 1 elements of float32, not 2" in broken(
        tmp_path, change, frozen=frozen
    )


def test_files_of_ranks_that_are_missing_or_there_twice_are_refused(tmp_path):
    path = zero_folder(tmp_path / "a", {"w": torch.ones(5)}, ranks=3)
    name = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
    (path / name.format(1)).rename(path / ("bf16_" + name.format(2)))
    with pytest.raises(InputError, match="has files of ranks 0, 2, 2, not one of each"):
        open_checkpoint(path)
    (path / ("bf16_" + name.format(2))).unlink()
    with pytest.raises(InputError, match="has files of ranks 0, 2, not one of each"):
        open_checkpoint(path)
    (path / name.format(2)).rename(path / name.format(1))
    with pytest.raises(InputError, match="files of 2 of 3 ranks are here"):
        open_checkpoint(path)


def test_a_missing_model_file_is_told(tmp_path):
    path = zero_folder(tmp_path / "a", {"w": torch.ones(5)}, frozen={"f": torch.ones(4)})
    (path / "zero_pp_rank_1_mp_rank_00_model_states.pt").unlink()
    with pytest.raises(InputError, match="zero_pp_rank_1_mp_rank_00_model_states"):
        open_checkpoint(path)


def test_nothing_in_a_file_is_executed(tmp_path):
    class Foreign:
        def __reduce__(self):
            return (print, ("executed",))

    class Worse:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "made"),))

    def change(name, content):
        if "optim" in name:
            content["optimizer_state_dict"]["loss_scaler"] = Foreign()
            content["optimizer_state_dict"]["param_slice_mappings"] = [Worse()]

    path = zero_folder(tmp_path / "a", {"w": torch.arange(5.0)}, change=change)
    np.testing.assert_array_equal(held(path)["w"], np.arange(5, dtype=np.float32))
    assert not (tmp_path / "made").exists()


def test_a_universal_folder_is_refused_by_name(tmp_path):
    path = zero_folder(tmp_path / "global_step5_universal", {"w": torch.ones(5)}, stage=1)
    (path / "zero/w").mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    assert "is a universal checkpoint of DeepSpeed's" in caught.value.problem
    assert "ds_to_universal.py" in caught.value.hint


def test_several_models_of_accelerate_are_refused_and_one_is_read(tmp_path):
    for name in ("pytorch_model", "pytorch_model_1"):
        zero_folder(tmp_path / "checkpoint_0" / name, {"w": torch.ones(5)})
    (tmp_path / "checkpoint_0/latest").write_text("pytorch_model_1")
    with pytest.raises(InputError, match="several models: pytorch_model_1, pytorch_model"):
        open_checkpoint(tmp_path / "checkpoint_0")
    assert len(open_checkpoint(tmp_path / "checkpoint_0/pytorch_model")) == 1
    shutil.rmtree(tmp_path / "checkpoint_0/pytorch_model_1")
    (tmp_path / "checkpoint_0/latest").write_text("pytorch_model")
    (tmp_path / "checkpoint_0/config.json").write_text('{"a": 1}')
    (tmp_path / "checkpoint_0/zero_to_fp32.py").write_text("print()")
    opened = open_checkpoint(tmp_path / "checkpoint_0")
    assert [*opened.extras.side_files] == ["config.json"]


def test_weights_that_stage_1_and_2_have_no_masters_of_come_from_the_model_file(tmp_path):
    frozen = {"f": torch.arange(4.0).bfloat16()}
    for stage in (1, 2):
        path = zero_folder(tmp_path / str(stage), {"w": torch.ones(5)}, frozen=frozen, stage=stage)
        checkpoint = open_checkpoint(path)
        assert checkpoint["f"].dtype.name == "bfloat16"
        assert checkpoint.read("f").tolist() == [0, 1, 2, 3]


def test_an_empty_buffer_is_no_weight_that_is_spread(tmp_path):
    path = zero_folder(tmp_path / "a", {"w": torch.ones(5)}, buffers={"e": torch.zeros(0)})
    assert held(path)["e"].shape == (0,)


@pytest.mark.parametrize("stage", [1, 3])
def test_groups_are_one_behind_the_other(tmp_path, stage):
    masters = {name: torch.randn(size) for name, size in (("a", 7), ("b", 1), ("c", 4), ("d", 6))}
    path = zero_folder(
        tmp_path / "a", masters, groups=[["c", "a"], ["d"], ["b"]], stage=stage, ranks=3
    )
    assert_equal(held(path), {name: tensor.numpy() for name, tensor in masters.items()})


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    ("stated", "dtype", "written"),
    [
        ("bfloat16", "keep", "float32"),
        ("float16", "keep", "float32"),
        ("float32", "keep", "float32"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("bfloat16", "float16", "float16"),
    ],
)
def test_configuration_states_the_dtype_of_the_masters(tmp_path, run, stated, dtype, written):
    for name in ("checkpoint-1", "checkpoint-2"):
        shutil.copytree(FILES / run, tmp_path / name / "global_step9")
        (tmp_path / name / "latest").write_text("global_step9")
        (tmp_path / name / "config.json").write_text(json.dumps({"torch_dtype": stated}))
    inputs = [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"]
    report = average(inputs, output=f"{tmp_path}/out/", policy=Policy(dtype=dtype))
    found = json.loads((tmp_path / "out/config.json").read_text())
    assert found == {"torch_dtype": written}
    assert open_checkpoint(tmp_path / "out")["embed.weight"].dtype.name == written
    told = f"config.json says what is written: torch_dtype is {written} (was {stated})"
    assert (told in report.notes) == (stated != written)
