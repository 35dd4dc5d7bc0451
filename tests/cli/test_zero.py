"""ZeRO folders of DeepSpeed's, from the command line."""

import json

import numpy as np
import pytest
import torch
from checkpoints import load
from command_line import done, swavg
from composites import w, write
from zero_folders import zero_folder


def masters(step):
    return {"w": torch.full((5,), float(step)), "v": torch.full((2, 3), -float(step))}


def run_of(path, *steps, name="global_step{}", **options):
    for step in steps:
        zero_folder(path / name.format(step), masters(step), val_loss=1 / step, **options)
    (path / "latest").write_text(name.format(steps[-1]))
    return path


def first(path):
    return {name: tensor.flatten()[0].item() for name, tensor in load(path).items()}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_run_of_several_is_a_series(tmp_path, stage):
    run_of(tmp_path / "run", 5, 10, 20, stage=stage)
    listed = json.loads(done("list", "run", "--json", cwd=tmp_path).stdout)["checkpoints"]
    assert [each["step"] for each in listed] == [5, 10, 20]
    assert [each["metrics"]["val_loss"] for each in listed] == [0.2, 0.1, 0.05]
    done("average", "run", "--last", "2", "-o", "o.safetensors", cwd=tmp_path)
    assert first(tmp_path / "o.safetensors") == {"w": 15.0, "v": -15.0}
    done("ema", "run", "--decay", "0.5", "-o", "e.safetensors", cwd=tmp_path)
    assert first(tmp_path / "e.safetensors").keys() == {"w", "v"}


def test_a_folder_with_one_stands_for_what_latest_names(tmp_path):
    for step in (10, 20):
        run_of(tmp_path / f"checkpoint-{step}", step)
    ran = done("average", "checkpoint-10", "checkpoint-20", "-o", "o.safetensors", cwd=tmp_path)
    assert first(tmp_path / "o.safetensors") == {"w": 15.0, "v": -15.0}
    assert "took the float32 weights of 2 tensors from the files of 2 ranks" in ran.stderr
    ran = done(
        "ema", "checkpoint-10", "checkpoint-20", "--decay", "0.5", "-o", "e.pt", cwd=tmp_path
    )
    assert "--pattern" not in ran.stderr


def test_folders_of_lightning_and_accelerate_are_checkpoints(tmp_path):
    for step in (10, 20):
        run_of(tmp_path / f"lightning/epoch=0-step={step}.ckpt", step, name="checkpoint")
        run_of(tmp_path / f"accelerate/checkpoint_{step}", step, name="pytorch_model")
    for run in ("lightning", "accelerate"):
        listed = json.loads(done("list", run, "--json", cwd=tmp_path).stdout)["checkpoints"]
        assert [each["step"] for each in listed] == [10, 20], run
        done("average", run, "-o", f"{run}.safetensors", cwd=tmp_path)
        assert first(tmp_path / f"{run}.safetensors") == {"w": 15.0, "v": -15.0}


def test_outputs_are_files_or_a_folder_with_the_configuration(tmp_path):
    for step in (10, 20):
        run_of(tmp_path / f"checkpoint-{step}", step)
        # As transformers leaves it if it does not gather the weights.
        files = {"config.json": '{"layers": 2}', "trainer_state.json": {"global_step": step},
                 "training_args.bin": {}, "scheduler.pt": {}, "rng_state_0.pth": {}}  # fmt: skip
        write(tmp_path / f"checkpoint-{step}", files)
    inputs = ("checkpoint-10", "checkpoint-20")
    done("average", *inputs, "-o", "o.pt", cwd=tmp_path)
    assert torch.load(tmp_path / "o.pt")["w"].tolist() == [15.0] * 5
    done("average", *inputs, "-o", "folder/", cwd=tmp_path)
    assert first(tmp_path / "folder/model.safetensors") == {"w": 15.0, "v": -15.0}
    assert {each.name for each in (tmp_path / "folder").iterdir()} == {
        "config.json", "model.safetensors",
    }  # fmt: skip
    assert done("average", *inputs, cwd=tmp_path).stdout == "averaged.safetensors\n"


def test_all_commands_that_look_take_them(tmp_path):
    run_of(tmp_path, 5, 10)
    shown = done("inspect", "global_step5", cwd=tmp_path).stdout
    assert "zero" in shown
    assert "also holds  optimizer_state_dict" in shown
    assert "val_loss = 0.2" in shown
    differ = swavg("diff", "global_step5", "global_step10", cwd=tmp_path)
    assert "2 differ" in differ.stdout
    done("convert", "global_step5", "o.pt", cwd=tmp_path)
    assert torch.load(tmp_path / "o.pt")["v"].tolist() == [[-5.0] * 3] * 2


def test_parts_of_one_checkpoint_are_not_averaged_and_the_hint_works(tmp_path):
    run_of(tmp_path, 5, 10)
    names = [f"global_step5/zero_pp_rank_{r}_mp_rank_00_model_states.pt" for r in (0, 1)]
    ran = swavg("average", *names, "-o", "o.pt", cwd=tmp_path)
    assert ran.returncode == 3
    assert "that holds the files of all ranks, here global_step5." in " ".join(ran.stderr.split())
    ran = swavg("average", names[0], names[0], "-o", "o.pt", cwd=tmp_path)
    assert ran.returncode == 3
    assert "the folder with the files of all ranks (global_stepN)" in " ".join(ran.stderr.split())
    done("average", "global_step5", "-o", "o.pt", cwd=tmp_path)


def test_of_a_folder_that_lacks_ranks_the_rounded_weights_can_be_averaged(tmp_path):
    for step in (5, 10):
        path = zero_folder(tmp_path / f"global_step{step}", masters(step), stage=2)
        (path / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()
    ran = swavg("average", "global_step5", "global_step10", "-o", "o", cwd=tmp_path)
    assert ran.returncode == 4
    assert "are in mp_rank_00_model_states.pt: give those files" in " ".join(ran.stderr.split())
    files = [f"global_step{step}/mp_rank_00_model_states.pt" for step in (5, 10)]
    done("average", *files, "-o", "o.pt", cwd=tmp_path)
    assert torch.load(tmp_path / "o.pt", weights_only=True)["module"]["w"].tolist() == [7.5] * 5


def test_masters_that_are_gone_leave_the_16_bit_weights_of_stages_1_and_2(tmp_path):
    for step in (5, 10):
        path = zero_folder(tmp_path / f"global_step{step}", masters(step), stage=2)
        for file in path.glob("*optim*"):
            file.unlink()
    done("average", "global_step5", "global_step10", "-o", "o", cwd=tmp_path)
    kept = torch.load(tmp_path / "o/mp_rank_00_model_states.pt", weights_only=True)
    assert kept["module"]["w"].tolist() == [7.5] * 5


def test_with_weights_beside_them_folders_are_what_they_were(tmp_path):
    for step in (5, 10):
        run_of(tmp_path / f"checkpoint-{step}", step)
        write(tmp_path / f"checkpoint-{step}", {"model.safetensors": w(step)})
    done("average", "checkpoint-5", "checkpoint-10", "-o", "o/", cwd=tmp_path)
    assert first(tmp_path / "o/model.safetensors") == {"w": 7.5}


def test_what_has_masters_and_what_has_none_is_averaged_together(tmp_path):
    zero_folder(tmp_path / "a", {"w": torch.ones(5)}, stage=1)
    zero_folder(tmp_path / "b", {"w": torch.full((5,), 2.0)}, stage=3, ranks=4)
    torch.save({"w": torch.full((5,), 6.0)}, tmp_path / "c.pt")
    done("average", "a", "b", "c.pt", "-o", "o.safetensors", cwd=tmp_path)
    np.testing.assert_array_equal(load(tmp_path / "o.safetensors")["w"].numpy(), np.full(5, 3.0))


def test_a_folder_without_the_files_of_all_ranks_is_called_incomplete(tmp_path):
    path = zero_folder(tmp_path / "global_step4", {"w": torch.ones(5)}, ranks=3)
    name = "zero_pp_rank_2_mp_rank_00_optim_states.pt"
    refused = swavg("average", path / name, "-o", tmp_path / "o")
    assert "is of DeepSpeed's optimizer" in refused.stderr
    assert "Give its folder." in refused.stderr
    done("average", path, "-o", tmp_path / "o.safetensors")
    bare = done("average", path, "-o", tmp_path / "o.pt").stderr
    assert "the last input is no PyTorch file" in " ".join(bare.split())
    (path / name).unlink()
    refused = swavg("average", path, "-o", tmp_path / "o")
    assert "is incomplete: files of 2 of 3 ranks are here" in refused.stderr
    assert "stages 1 and 2" not in refused.stderr


def test_the_model_file_alone_is_told_of_its_float32_weights(tmp_path):
    def narrowed(name, content):
        if name == "mp_rank_00_model_states.pt":
            content["module"] = {key: value.bfloat16() for key, value in content["module"].items()}

    run_of(tmp_path / "run", 10, 20, stage=2, change=narrowed)
    files = [f"run/global_step{step}/mp_rank_00_model_states.pt" for step in (10, 20)]
    said = " ".join(done("average", *files, "-o", "o.pt", cwd=tmp_path).stderr.split())
    assert "give the folder, run/global_step20, to average these" in said
    done("average", "run/global_step10", "run/global_step20", "-o", "f.pt", cwd=tmp_path)
    for file in files:
        folder = (tmp_path / file).parent
        for rank in folder.glob("*optim_states.pt"):
            rank.unlink()
    alone = done("average", *files, "-o", "p.pt", cwd=tmp_path).stderr
    assert "float32" not in alone
