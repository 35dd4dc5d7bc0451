"""Several state dicts in a PyTorch file: each is averaged with its namesakes."""

import pytest
import safetensors.torch
import torch
from command_line import done, swavg


def w(value, size=3):
    return torch.full((size,), float(value))


def write(folder, *contents):
    """One file for each, and their names."""
    names = [f"{letter}.pt" for letter in "abcdef"[: len(contents)]]
    for name, content in zip(names, contents, strict=True):
        torch.save(content, folder / name)
    return names


def loaded(path):
    return torch.load(path, weights_only=False)


def test_two_networks_are_averaged_each_with_its_own(tmp_path):
    files = write(tmp_path, *({"net_g": {"w": w(i)}, "net_d": {"v": w(10 * i)}} for i in range(2)))
    done("average", *files, "-o", "o.pt", cwd=tmp_path)
    found = loaded(tmp_path / "o.pt")
    assert (found["net_g"]["w"][0], found["net_d"]["v"][0]) == (0.5, 5.0)


def test_an_average_of_lightning_callbacks_goes_along(tmp_path):
    files = write(
        tmp_path,
        *(
            {
                "state_dict": {"net.w": w(i)},
                "callbacks": {
                    "EMA": {"ema_state_dict": {"net.w": w(100 + i)}},
                    "ModelCheckpoint": {"best_model_score": torch.tensor(float(i))},
                },
                "optimizer_states": [{"state": {0: {"exp_avg": w(i)}}, "param_groups": []}],
            }
            for i in range(2)
        ),
    )
    done("average", *files, "-o", "o.pt", cwd=tmp_path)
    found = loaded(tmp_path / "o.pt")
    assert found["state_dict"]["net.w"][0] == 0.5
    assert found["callbacks"]["EMA"]["ema_state_dict"]["net.w"][0] == 100.5
    assert found["callbacks"]["ModelCheckpoint"]["best_model_score"] == 1
    assert found["optimizer_states"][0]["state"][0]["exp_avg"][0] == 1


def test_nested_and_pickled_modules_too(tmp_path):
    def module(value):
        layer = torch.nn.Linear(3, 1, bias=False)
        torch.nn.init.constant_(layer.weight, value)
        return layer

    files = write(
        tmp_path,
        *(
            {"model": {"w": w(i)}, "trainer": {"ema": {"w": w(20 + i)}}, "teacher": module(40 + i)}
            for i in range(2)
        ),
    )
    done("average", *files, "-o", "o.pt", cwd=tmp_path)
    found = loaded(tmp_path / "o.pt")
    assert found["trainer"]["ema"]["w"][0] == 20.5
    assert found["teacher"].weight[0, 0] == 40.5


@pytest.mark.parametrize(
    ("beside", "reason"),
    [({"v": 1}, "lacks its tensor"), ({"w": 5}, "[3] in b.pt"), (None, "has no such state dict")],
)
def test_one_that_differs_is_the_last_inputs_and_told(tmp_path, beside, reason):
    other = {} if beside is None else {"ema": {name: w(7, size) for name, size in beside.items()}}
    other = {"ema": {"v": w(7)}} if beside == {"v": 1} else other
    files = write(
        tmp_path, {"model": {"w": w(0)}, **other}, {"model": {"w": w(1)}, "ema": {"w": w(9)}}
    )
    run = done("average", *files, "-o", "o.pt", cwd=tmp_path)
    found = loaded(tmp_path / "o.pt")
    assert (found["model"]["w"][0], found["ema"]["w"][0]) == (0.5, 9)
    told = " ".join(run.stderr.split())
    assert "warning 'ema' was not averaged, but left as in b.pt" in told
    assert reason in told


def test_a_key_takes_one_alone(tmp_path):
    files = write(tmp_path, *({"model": {"w": w(i)}, "ema": {"w": w(10 + i)}} for i in range(2)))
    done("average", *files, "--key", "ema", "-o", "o.pt", cwd=tmp_path)
    found = loaded(tmp_path / "o.pt")
    assert (found["model"]["w"][0], found["ema"]["w"][0]) == (1, 10.5)


def test_that_lightning_loads_the_training_weights_beside_a_callbacks_averages_is_told(tmp_path):
    state = {"state_dict": {"w": w(1)}, "callbacks": {"EMA": {"averages": {"w": w(2)}}}}
    write(tmp_path, state)
    key = ("--key", "callbacks.EMA.averages")
    run = done("convert", "a.pt", "o.pt", *key, cwd=tmp_path)
    assert "warning 'state_dict', which Lightning loads" in run.stderr
    assert loaded(tmp_path / "o.pt")["state_dict"]["w"][0] == 1
    for output, more in (("bare.pt", ["--weights-only"]), ("o.safetensors", [])):
        run = done("convert", "a.pt", output, *key, *more, cwd=tmp_path)
        assert "Lightning" not in run.stderr
    assert loaded(tmp_path / "bare.pt")["w"][0] == 2


def test_other_outputs_have_the_main_one_and_say_so(tmp_path):
    files = write(tmp_path, *({"model": {"w": w(i)}, "ema": {"w": w(10 + i)}} for i in range(2)))
    for output, more in (("o.safetensors", ()), ("bare.pt", ("--weights-only",))):
        run = done("average", *files, "-o", output, *more, cwd=tmp_path)
        assert "'ema'" in run.stderr
    assert {**safetensors.torch.load_file(tmp_path / "o.safetensors")}.keys() == {"w"}
    assert loaded(tmp_path / "bare.pt").keys() == {"w"}
    run = done("average", *files, "-o", "half.pt", "--dtype", "float16", cwd=tmp_path)
    assert loaded(tmp_path / "half.pt").keys() == {"w"}
    assert "left out: the output is a bare state dict" in " ".join(run.stderr.split())


def test_what_shares_its_storage_stays_shared(tmp_path):
    shared = [w(i) for i in range(2)]
    files = write(tmp_path, *({"model": {"w": each}, "ema": {"w": each}} for each in shared))
    done("average", *files, "-o", "o.pt", cwd=tmp_path)
    found = loaded(tmp_path / "o.pt")
    assert found["model"]["w"].data_ptr() == found["ema"]["w"].data_ptr()
    assert found["ema"]["w"][0] == 0.5


def test_shared_in_the_last_alone_is_told(tmp_path):
    one = w(1)
    files = write(
        tmp_path,
        {"model": {"w": w(0)}, "ema": {"w": w(8)}},
        {"model": {"w": one}, "ema": {"w": one}},
    )
    run = done("average", *files, "-o", "o.pt", cwd=tmp_path)
    assert "'ema' was not averaged by itself" in run.stderr
    assert loaded(tmp_path / "o.pt")["model"]["w"][0] == 0.5


def test_series_updates_and_sweeps_average_all(tmp_path):
    files = write(
        tmp_path,
        *({"model": {"w": w(i)}, "ema": {"w": w(10 + i)}, "epoch": i} for i in range(4)),
    )
    done("ema", *files[:2], "--decay", "0.5", "-o", "ema.pt", cwd=tmp_path)
    assert loaded(tmp_path / "ema.pt")["ema"]["w"][0] == 10.5
    done("average", *files[:2], "-o", "two.pt", cwd=tmp_path)
    done("update", "two.pt", files[3], "-o", "three.pt", "--dtype", "float32", cwd=tmp_path)
    found = loaded(tmp_path / "three.pt")
    assert found["model"]["w"][0] == pytest.approx(4 / 3)
    assert found["ema"]["w"][0] == pytest.approx(10 + 4 / 3)


def test_what_is_no_weights_is_left_alone(tmp_path):
    files = write(
        tmp_path,
        *(
            {
                "model": {"w": w(i)},
                "optimizer": {"state": {0: {"exp_avg": w(i)}}, "param_groups": []},
                "lr_scheduler": {"base": w(i)},
                "rng_state": torch.get_rng_state(),
                "amp_scaler": {"scale": w(i)},
                "metrics": {"confusion": w(i, 9)},
            }
            for i in range(2)
        ),
    )
    done("average", *files, "-o", "o.pt", cwd=tmp_path)
    found = loaded(tmp_path / "o.pt")
    assert found["model"]["w"][0] == 0.5
    for value in (
        found["optimizer"]["state"][0]["exp_avg"],
        found["lr_scheduler"]["base"],
        found["amp_scaler"]["scale"],
        found["metrics"]["confusion"],
    ):
        assert value[0] == 1


def test_window_reads_icefalls_counts(tmp_path):
    def running(total, steps):
        return {"model": {"w": w(-1)}, "model_avg": {"w": w(total)}, "batch_idx_train": steps}

    files = write(tmp_path, running(2, 100), running(5, 400))
    run = done("window", *files, "-o", "o.pt", cwd=tmp_path)
    found = loaded(tmp_path / "o.pt")
    # (5 * 400 - 2 * 100) / 300
    torch.testing.assert_close(found["model_avg"]["w"], w(6))
    assert found["model"]["w"][0] == -1
    assert "warning the window is of 'model_avg' alone" in run.stderr
    done("window", *files, "-o", "bare.pt", "--weights-only", cwd=tmp_path)
    torch.testing.assert_close(loaded(tmp_path / "bare.pt")["w"], w(6))
    # Counts do not make an average of the plain weights.
    done("window", *files, "--counts", "1", "4", "-o", "counts.pt", cwd=tmp_path)
    found = loaded(tmp_path / "counts.pt")
    torch.testing.assert_close(found["model_avg"]["w"], w(6))
    assert found["model"]["w"][0] == -1


def test_a_count_of_steps_makes_no_average_of_plain_weights(tmp_path):
    files = write(tmp_path, *({"model": {"w": w(i)}, "batch_idx_train": 100 * i} for i in (1, 2)))
    run = swavg("window", *files, "-o", "o.pt", cwd=tmp_path)
    assert run.returncode == 4
    assert "--counts" in run.stderr
    assert not (tmp_path / "o.pt").exists()


def test_a_recipe_counts_more_than_the_steps_of_its_last_input(tmp_path):
    files = write(
        tmp_path, *({"model": {"w": w(i)}, "batch_idx_train": 1000 * (i + 1)} for i in range(4))
    )
    done("average", *files[:2], "-o", "two.pt", cwd=tmp_path)
    done("average", *files, "-o", "four.pt", cwd=tmp_path)
    done("window", "two.pt", "four.pt", "-o", "o.pt", cwd=tmp_path)
    torch.testing.assert_close(loaded(tmp_path / "o.pt")["model"]["w"], w(2.5))


def test_globs_are_over_full_names(tmp_path):
    files = write(tmp_path, *({"model": {"w": w(i)}, "ema": {"w": w(10 + i)}} for i in range(2)))
    done("average", *files, "--include", "ema.*", "-o", "in.pt", cwd=tmp_path)
    found = loaded(tmp_path / "in.pt")
    assert (found["model"]["w"][0], found["ema"]["w"][0]) == (1, 10.5)
    done("average", *files, "--exclude", "ema.*", "-o", "ex.pt", cwd=tmp_path)
    found = loaded(tmp_path / "ex.pt")
    assert (found["model"]["w"][0], found["ema"]["w"][0]) == (0.5, 11)


def test_one_that_cannot_be_written_in_place_costs_nothing_else(tmp_path):
    flat = w(11, 5)
    apart, overlapping = {"v": w(3), "w": w(10)}, {"v": flat[:3], "w": flat[2:5]}
    files = write(
        tmp_path,
        *(
            {"model": {"w": w(i)}, "ema": ema, "epoch": i}
            for i, ema in enumerate((apart, overlapping))
        ),
    )
    run = done("average", *files, "-o", "o.pt", cwd=tmp_path)
    found = loaded(tmp_path / "o.pt")
    assert (found["model"]["w"][0], found["ema"]["w"][0], found["epoch"]) == (0.5, 11, 1)
    told = " ".join(run.stderr.split())
    assert "warning 'ema' not averaged, but left as in b.pt" in told
    assert "note averaged" not in told


def test_plain_weights_at_the_top_level_are_averaged_beside_their_moving_average(tmp_path):
    files = write(
        tmp_path, *({"a.weight": w(i), "ema": {"a.weight": w(10 + i)}, "epoch": i} for i in (0, 1))
    )
    done("average", *files, "-o", "o.pt", cwd=tmp_path)
    found = loaded(tmp_path / "o.pt")
    assert (found["a.weight"][0], found["ema"]["a.weight"][0], found["epoch"]) == (0.5, 10.5, 1)
