"""Which folders are ZeRO's, going by names and by what ``latest`` says."""

import pytest
import torch
from command_line import done
from composites import w, write
from zero_folders import zero_folder

from swavg.formats.places import format_at
from swavg.series import discover

W = {"w": torch.ones(3)}
RANKS = [f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]


def is_zero(path):
    found = format_at(str(path))
    return found is not None and found.name == "zero"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_folder_of_ranks_and_the_one_above_it_are_it(tmp_path, stage):
    zero_folder(tmp_path / "run/global_step5", W, stage=stage)
    assert is_zero(tmp_path / "run/global_step5")
    assert not is_zero(tmp_path / "run")
    for tag, known in (("global_step5\n", True), ("../run/global_step5", False), ("\xff", False)):
        (tmp_path / "run/latest").write_text(tag, "latin1")
        assert is_zero(tmp_path / "run") == known, tag


def test_several_below_one_folder_are_those_of_a_run(tmp_path):
    for step in (5, 10):
        zero_folder(tmp_path / f"run/global_step{step}", W)
    (tmp_path / "run/latest").write_text("global_step10")
    assert not is_zero(tmp_path / "run")


def test_a_run_is_found_below_the_folder_of_its_logs(tmp_path):
    run = tmp_path / "lightning_logs/version_0/checkpoints"
    for step in (5, 10):
        zero_folder(run / f"epoch=0-step={step}.ckpt/checkpoint", W)
        (run / f"epoch=0-step={step}.ckpt/latest").write_text("checkpoint")
    found = discover([tmp_path / "lightning_logs"])
    assert found.notes[0].startswith(f"the checkpoints of {run}")
    assert found.steps == (5, 10)


def test_weights_beside_it_are_what_a_folder_is_known_for(tmp_path):
    zero_folder(tmp_path / "checkpoint-5/global_step5", W)
    write(tmp_path / "checkpoint-5", {"latest": "global_step5", "model.safetensors": w(0)})
    assert not is_zero(tmp_path / "checkpoint-5")


@pytest.mark.parametrize(
    "files",
    [
        {"mp_rank_00_model_states.pt": w(0, "module")},
        {name: {} for name in RANKS},
        {"mp_rank_00_model_states.pt": {}, "mp_rank_01_model_states.pt": {}, RANKS[0]: {}},
        {"mp_rank_00_model_states.pt": {}, "layer_00-model_00-model_states.pt": {}, RANKS[0]: {}},
        {"mp_rank_00_model_states.pt": {}, RANKS[0]: {},
         "layer_0_expert_1_mp_rank_00_model_states.pt": {}},
        {"mp_rank_00_model_states.pt": {}, RANKS[0].replace("rank_00", "rank_01"): {}},
    ],
    ids=["ZeRO-0", "no model", "tensor parallel", "pipeline", "experts", "other ranks"],
)  # fmt: skip
def test_others_are_not(tmp_path, files):
    assert not is_zero(write(tmp_path / "a", files))


def test_files_are_not(tmp_path):
    assert not is_zero(write(tmp_path, {"a.pt": w(0)}) / "a.pt")
    assert not is_zero(tmp_path / "nothing")


def test_the_generators_of_ranks_beside_it_are_no_checkpoints(tmp_path):
    for step in (5, 10):
        folder = tmp_path / f"checkpoint-{step}"
        zero_folder(folder / f"global_step{step}", W)
        write(folder, {"latest": f"global_step{step}", "config.json": "{}"})
        for rank in range(2):
            torch.save({"cpu": torch.ones(3)}, folder / f"rng_state_{rank}.pth")
    done("average", tmp_path / "checkpoint-5", tmp_path / "checkpoint-10", "-o", f"{tmp_path}/out/")
    assert {each.name for each in (tmp_path / "out").iterdir()} == {
        "config.json", "model.safetensors",
    }  # fmt: skip
