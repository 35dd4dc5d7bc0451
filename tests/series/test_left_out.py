"""What of a searched folder is no snapshot: averages by recipe and by name, copies, beginnings."""

import json

import numpy as np
import pytest
import torch
from checkpoints import load, save, state
from command_line import done, swavg

from swavg.series import discover
from swavg.series.names import marks_in


def run(folder, *names):
    """Torch files, each with its number as the only weight."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        torch.save({"w": torch.full((3,), float(number))}, folder / name)
    return folder


def names(series):
    return [path.rpartition("/")[2] for path in series.paths]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("epoch_5_avg", {"avg"}),
        ("epoch5Avg", {"Avg"}),
        ("EMAModel_3", {"EMA"}),
        ("valid.acc.ave_10best", {"ave", "best"}),
        ("swa-epoch=3", {"swa"}),
        ("model-final.v2", {"final"}),
        ("swarm_3", set()),
        ("initial_step_3", set()),
        ("avenue_7", set()),
        ("schema_1", set()),
        ("finalist_2", set()),
        ("besteffort_1", set()),
        ("averagepool_4", set()),
    ],
)
def test_words_for_averages_are_whole(name, words):
    assert marks_in(name) == words


@pytest.mark.parametrize(
    ("own", "others"),
    [
        ("epoch_{}.pt", ["epoch_3_avg.pt", "soup_of_3.pt", "epoch-2-3-averaged.pt"]),
        ("{}.pt", ["avg_3.pt", "init.pt", "final.pt"]),
        ("{}epoch.pth", ["valid.acc.ave_3best.pth", "valid.acc.best.pth"]),
        ("model_000{}999.pth", ["model_final.pth"]),
        ("step-{}000.ckpt", ["swa-step-3000.ckpt", "pretrained.ckpt", "EMA-step-1000.ckpt"]),
        ("model0{}0000.pt", ["ema_0.9999_010000.pt", "ema_0.9999_030000.pt"]),
        ("checkpoint{}.pt", ["checkpoint_best.pt", "checkpoint3_merged.pt"]),
        ("run_best_of_2_epoch_{}.pt", ["run_best_of_2_epoch_3_ema.pt"]),
    ],
)
def test_what_is_called_an_average_is_left_out_of_a_run_and_said(tmp_path, own, others):
    own = [own.format(number) for number in (1, 2, 3)]
    series = discover([run(tmp_path, *own, *others)])
    assert names(series) == own
    (note,) = series.notes
    assert note.startswith("ignored ")
    assert "by name no snapshots of the run" in note


@pytest.mark.parametrize(
    "all_of_them",
    [
        ["ema_0.9999_010000.pt", "ema_0.9999_020000.pt"],
        ["best-epoch=1.ckpt", "best-epoch=5.ckpt"],
        ["swa-step1.pt", "swa-step2.pt", "swa-step3.pt"],
        ["final_a.pt", "final_b.pt"],
        ["swarm_step_1.pt", "swarm_step_2.pt", "step_3.pt"],
        ["a.pt", "b.pt", "merged.pt"],
    ],
)
def test_a_folder_in_which_all_are_called_so_is_a_series(tmp_path, all_of_them):
    series = discover([run(tmp_path, *all_of_them)])
    assert names(series) == all_of_them
    assert not [note for note in series.notes if "ignored" in note]


def test_a_run_of_best_ones_stays_one_beside_the_state_to_resume_from(tmp_path):
    run(tmp_path, "best-epoch=1.ckpt", "best-epoch=5.ckpt")
    torch.save({"w": torch.ones(3), "epoch": 6}, tmp_path / "last.ckpt")
    assert names(discover([tmp_path])) == ["best-epoch=1.ckpt", "best-epoch=5.ckpt", "last.ckpt"]


def test_the_pattern_that_the_note_offers_takes_them(tmp_path):
    run(tmp_path / "run", "epoch_1.pt", "epoch_2.pt", "epoch_1_avg.pt", "epoch_2_avg.pt")
    told = done("list", "run", cwd=tmp_path).stderr
    assert "--pattern '*avg*'" in told
    done("average", "run", "--pattern", "*avg*", "-o", "o.pt", cwd=tmp_path)
    assert torch.load(tmp_path / "o.pt")["w"].tolist() == [2.5] * 3
    # A pattern that says no such word is for suffixes and the like.
    done("average", "run", "--pattern", "*.pt", "-o", "plain.pt", cwd=tmp_path)
    assert torch.load(tmp_path / "plain.pt")["w"].tolist() == [0.5] * 3


def test_an_average_under_any_name_is_known_by_its_recipe(tmp_path):
    run(tmp_path / "run", "epoch_1.pt", "epoch_2.pt")
    done("average", "run", "-o", "run/epoch_3.pt", cwd=tmp_path)
    series = discover([tmp_path / "run"])
    assert names(series) == ["epoch_1.pt", "epoch_2.pt"]
    assert series.notes == ("ignored epoch_3.pt: swavg wrote it",)


def test_an_average_is_left_out_where_no_step_is_known(tmp_path):
    run(tmp_path / "run", "a.pt", "b.pt")
    done("average", "run", "-o", "run/c.pt", cwd=tmp_path)
    assert names(discover([tmp_path / "run"])) == ["a.pt", "b.pt"]


def test_a_sharded_average_is_known_whatever_its_trainer_state_says(tmp_path):
    for step in (500, 1000):
        save(tmp_path / f"run/checkpoint-{step}/model.safetensors", state(step))
    done("average", "run", "--max-shard-size", "150", "-o", "run/checkpoint-1500", cwd=tmp_path)
    assert (tmp_path / "run/checkpoint-1500/model.safetensors.index.json").exists()
    (tmp_path / "run/checkpoint-1500/trainer_state.json").write_text('{"global_step": 1500}')
    series = discover([tmp_path / "run"])
    assert names(series) == ["checkpoint-500", "checkpoint-1000"]
    assert series.notes == ("ignored checkpoint-1500: swavg wrote it",)


def test_averages_taken_in_training_are_a_series_and_no_snapshots_beside_others(tmp_path):
    recipe = {"swavg": json.dumps({"method": "training ema", "n": 3})}
    for step in (1, 2):
        save(tmp_path / f"emas/shadow-step-{step}.safetensors", state(step), recipe)
        save(tmp_path / f"both/shadow-step-{step}.safetensors", state(step), recipe)
        save(tmp_path / f"both/step-{step}.safetensors", state(10 * step))
    assert len(discover([tmp_path / "emas"])) == 2
    assert names(discover([tmp_path / "both"])) == ["step-1.safetensors", "step-2.safetensors"]
    done("average", "emas", "-o", "emas/averaged.safetensors", cwd=tmp_path)
    assert len(discover([tmp_path / "emas"])) == 2


def test_an_average_of_snapshots_that_are_all_called_best_is_left_out(tmp_path):
    run(tmp_path / "run", "best-epoch=1.pt", "best-epoch=5.pt")
    done("average", "run", "-o", "run/averaged.pt", cwd=tmp_path)
    assert names(discover([tmp_path / "run"])) == ["best-epoch=1.pt", "best-epoch=5.pt"]


def test_averages_of_training_stay_a_series_beside_one_that_is_called_best(tmp_path):
    recipe = {"swavg": json.dumps({"method": "training ema", "n": 3})}
    for step in (1, 2):
        save(tmp_path / f"shadow-step-{step}.safetensors", state(step), recipe)
    save(tmp_path / "best-step-1.safetensors", state(3))
    assert "shadow-step-2.safetensors" in names(discover([tmp_path]))


def test_a_sweep_is_a_series_of_averages(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path / f"run/step-{step}.safetensors", state(step))
    recipes = ("uniform:last=2", "ema:decay=0.5", "ema:half-life=1steps")
    args = [text for recipe in recipes for text in ("-r", recipe)]
    done("sweep", "run", *args, "-d", "sweep", cwd=tmp_path)
    assert len(discover([tmp_path / "sweep"])) == 3


def test_an_average_among_given_paths_is_a_warning(tmp_path):
    paths = [save(tmp_path / f"{name}.safetensors", state(n)) for n, name in enumerate("ab")]
    done("average", *paths, "-o", "averaged.safetensors", cwd=tmp_path)
    told = done(
        "average", "a.safetensors", "averaged.safetensors", "-o", "o.safetensors", "--no-geometry",
        cwd=tmp_path,
    )  # fmt: skip
    assert "warning averaged.safetensors is an average that swavg wrote" in told.stderr
    # Soups of averages, and what continues one, are no mistakes.
    told = done("average", "averaged.safetensors", "o.safetensors", "-o", "p.safetensors",
                "--no-geometry", cwd=tmp_path)  # fmt: skip
    assert "warning" not in told.stderr
    save(tmp_path / "c.safetensors", state(9))
    told = done("update", "averaged.safetensors", "c.safetensors", "-o", "q.safetensors",
                "--no-geometry", cwd=tmp_path)  # fmt: skip
    assert "warning" not in told.stderr


def test_one_checkpoint_is_a_warning_and_a_copy(tmp_path):
    save(tmp_path / "a.safetensors", state(1))
    told = swavg("average", "a.safetensors", "-o", "o.safetensors", cwd=tmp_path)
    assert told.returncode == 0
    assert "warning one checkpoint: the average is a copy of a.safetensors" in told.stderr
    assert torch.equal(load(tmp_path / "o.safetensors")["body.bias"], state(1)["body.bias"])


@pytest.mark.parametrize("kind", ["npz", "folders", "steps"])
@pytest.mark.parametrize("configured", [False, True])
def test_an_average_in_the_folder_of_a_run_does_not_stand_for_it(kind, configured, tmp_path):
    run = tmp_path / "run"
    for number in range(3):
        weights = {"w": torch.full((3,), float(number))}
        if kind == "npz":
            run.mkdir(exist_ok=True)
            np.savez(run / f"w_{number}0.npz", w=weights["w"].numpy())
        elif kind == "folders":
            save(run / f"step-{number}0" / "model.safetensors", weights)
        else:
            save(run / f"{number}0" / "custom.safetensors", weights)
    if configured:
        (run / "config.json").write_text("{}")
    done("average", run, "-o", run / "avg.safetensors")
    again = done("average", run, "-o", tmp_path / "again.safetensors")
    assert load(tmp_path / "again.safetensors")["w"].tolist() == [1.0] * 3
    assert "ignored avg.safetensors: swavg wrote it" in again.stderr
    done("average", run, "--last", "2", "-o", tmp_path / "two.safetensors")
    assert load(tmp_path / "two.safetensors")["w"].tolist() == [1.5] * 3
    assert len(discover([run / "avg.safetensors"])) == 1


def test_an_average_alone_in_a_folder_with_its_configuration_is_a_checkpoint(tmp_path):
    run(tmp_path / "run", "step_1.pt", "step_2.pt")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text("{}")
    (tmp_path / "own" / "tokenizer.model").write_bytes(b"words")
    done("average", tmp_path / "run", "-o", tmp_path / "own" / "avg.safetensors")
    done("average", tmp_path / "own", "-o", tmp_path / "copy")
    assert load(tmp_path / "copy" / "avg.safetensors")["w"].tolist() == [0.5] * 3
    assert (tmp_path / "copy" / "tokenizer.model").exists()


def test_averages_do_not_make_arrays_data(tmp_path):
    for number in (1, 2):
        np.savez(tmp_path / f"w_{number}.npz", w=np.full(3, float(number), np.float32))
    for name in ("a", "b"):
        done("average", tmp_path / "w_1.npz", tmp_path / "w_2.npz", "-o",
             tmp_path / f"{name}.safetensors")  # fmt: skip
    assert names(discover([tmp_path])) == ["w_1.npz", "w_2.npz"]
    run(tmp_path, "step_1.pt")
    assert names(discover([tmp_path])) == ["step_1.pt"]
