"""Opening composites: parts by what is in them, and all of one to be looked at."""

import json

import pytest
import torch
from composites import llama, modules, speechbrain, w, write
from safetensors.torch import save_file

from swavg.errors import InputError
from swavg.formats import open_checkpoint
from swavg.formats.composite import as_composite
from swavg.formats.parts import open_parts, open_whole
from swavg.methods import convert


def opened(folder):
    return open_parts(as_composite(str(folder)))


def test_content_says_what_is_a_part(tmp_path):
    found = opened(write(tmp_path / "a", speechbrain(0)))
    assert [*found.parts] == ["model.ckpt", "normalizer.ckpt"]
    assert [*found.without] == ["brain.ckpt", "counter.ckpt"]
    assert found.optimizers == ("opt_class.ckpt",)
    assert {*found.side_files} == {"brain.ckpt", "counter.ckpt", "CKPT.yaml"}


def test_what_holds_an_optimizer_and_no_weights_is_left_out(tmp_path):
    adam = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"params": [0]}]}
    new = {"state": {}, "param_groups": [{"params": [0]}]}
    files = {
        "a.pt": {"optimizer": adam, "epoch": 3},
        "b.pt": {"o": new, "epoch": 3},
        "c.pt": [adam, new],
        "d.pt": {"optim_g": [adam]},
        "e.pt": new,
        "f.pt": {"epoch": 3},
    }
    found = opened(write(tmp_path / "a", speechbrain(0) | files))
    assert found.optimizers == ("a.pt", "b.pt", "c.pt", "d.pt", "e.pt", "opt_class.ckpt")
    assert "f.pt" in found.without


def test_own_weights_leave_out_no_part(tmp_path):
    found = opened(write(tmp_path / "a", modules(0)))
    assert found.parts[""].extras.left_out == ("onnx",)
    assert found.side_files == {"1_Pooling/config.json": f"{tmp_path}/a/1_Pooling/config.json"}


def test_a_whole_has_the_tensors_of_all_parts_by_their_place(tmp_path):
    folder = write(tmp_path / "a", llama(3) | {"consolidated.02.pth": {"w": torch.arange(4.0)[1:]}})
    whole = open_whole(folder)
    assert [*whole] == [f"consolidated.0{rank}.pth/w" for rank in range(3)]
    assert [whole.read(name)[0] for name in whole] == [30, 31, 1]
    assert [*open_whole(write(tmp_path / "b", modules(0)))] == ["w", "2_Dense/w"]


def test_a_part_may_lie_in_several_places(tmp_path):
    folder = write(tmp_path / "a", {"other/model.safetensors": w(3)})
    (folder / "model").mkdir()
    for rank, start in ((1, 0), (2, 2)):
        save_file(
            {"w": torch.full((2,), float(rank))},
            folder / f"model/shard-{rank:05}-model-00001-of-00001.safetensors",
            {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": [start]}})},
        )
    whole = open_whole(folder)
    assert [*whole] == ["model/w", "other/w"]
    assert [whole.read(name).tolist() for name in whole] == [[1, 1, 2, 2], [3, 3, 3]]


def test_where_one_checkpoint_is_expected_a_part_is_named(tmp_path):
    folder = write(tmp_path / "a", speechbrain(0))
    with pytest.raises(InputError, match="2 parts, where one checkpoint is expected") as told:
        open_checkpoint(folder)
    assert told.value.hint == f"Give one of them, such as {folder}/model.ckpt."
    assert [*open_checkpoint(f"{folder}/model.ckpt")] == ["w"]


def test_a_run_is_no_whole(tmp_path):
    folder = write(tmp_path / "a", {"step-1.pt": w(0), "step-2.pt": w(0)})
    for look in (open_whole, convert):
        with pytest.raises(InputError, match="holds 2 checkpoints, where one is exp") as caught:
            look(folder)
        assert f"Give one, such as {folder}/step-2.pt" in caught.value.hint


def test_a_folder_without_weights_has_none(tmp_path):
    with pytest.raises(InputError, match="finds no weights"):
        opened(write(tmp_path / "a", {"CKPT.yaml": "a: 1", "brain.ckpt": "loss: 1"}))
