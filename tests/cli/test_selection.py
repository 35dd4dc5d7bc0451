"""Choosing from a run: what the options take, and in which order."""

import click
import pytest
from checkpoints import save, state
from command_line import done, swavg
from run_of_five import STEPS, assert_bias, bias

from swavg.cli.selection import Selection, selected
from swavg.errors import RequestError

LOSSES = {100: 0.9, 200: 0.5, 300: 0.3, 400: 0.45}


@pytest.fixture
def folder(tmp_path):
    """A run of four snapshots, with the losses in their names."""
    for step, loss in LOSSES.items():
        save(tmp_path / f"run/step={step}-val_loss={loss}.safetensors", state(step))
    return tmp_path


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ([], STEPS),
        (["--last", "2"], (40, 100)),
        (["--from-step", "20", "--to-step", "40"], (20, 30, 40)),
        (["--every", "20"], (20, 40, 100)),
        (["--best", "2", "--metric", "val_loss"], (40, 100)),
        (["--best", "2", "--metric", "val_loss", "--mode", "max"], (10, 20)),
        (["--last", "9", "--at-most"], STEPS),
        (["--pattern", "step_1*"], (10, 100)),
    ],
)
def test_average_takes_what_is_chosen_from_a_folder(run, options, steps):
    done("average", "run", *options, "-o", "out.safetensors", cwd=run)
    assert_bias(run / "out.safetensors", bias(steps))


def test_asking_for_more_than_there_are_is_an_error(run):
    finished = swavg("average", "run", "--last", "9", cwd=run)
    assert finished.returncode == 2
    assert "9" in finished.stderr
    assert "5" in finished.stderr
    assert "--at-most" in finished.stderr


def test_weights_stay_with_the_paths_they_were_given_for(run):
    paths = [f"run/step_{step}-val_loss={1 / step:.3f}.safetensors" for step in (100, 10)]
    done("average", *paths, "--weights", "0.9", "0.1", "-o", "out.safetensors", cwd=run)
    assert_bias(run / "out.safetensors", bias((100, 10), (0.9, 0.1)))


def test_the_weights_of_a_folder_go_by_step_and_not_by_name(tmp_path):
    save(tmp_path / "f" / "a-step-200.safetensors", state(200))
    save(tmp_path / "f" / "b-step-100.safetensors", state(100))
    done("average", "f", "--weights", "1", "0", "-o", "o.safetensors", cwd=tmp_path)
    assert_bias(tmp_path / "o.safetensors", bias((100,)))


def test_paths_in_another_order_than_their_steps_are_put_in_order_and_said(run):
    paths = [f"run/step_{step}-val_loss={1 / step:.3f}.safetensors" for step in (100, 10)]
    finished = done("ema", *paths, "--decay", "0.9", "-o", "out.safetensors", cwd=run)
    assert "order" in finished.stderr
    assert_bias(run / "out.safetensors", bias((10, 100), (0.9, 0.1)))
    done("ema", *paths, "--decay", "0.9", "--keep-order", "-o", "k.safetensors", cwd=run)
    assert_bias(run / "k.safetensors", bias((100, 10), (0.9, 0.1)))


def test_choosing_gives_the_paths_in_order(folder):
    run = str(folder / "run")
    assert selected([run], Selection(last=2)).steps == (300, 400)
    assert selected([run], Selection()).steps == (100, 200, 300, 400)
    with pytest.raises(RequestError, match="found 4"):
        selected([run], Selection(last=5))
    assert selected([run], Selection(last=5, at_most=True)).steps == (100, 200, 300, 400)


@pytest.mark.parametrize("options", [{"metric": "val_loss"}, {"metrics_file": "log.csv"}])
def test_a_metric_that_chooses_nothing_is_refused(folder, options):
    with pytest.raises(click.UsageError, match="add best=K"):
        selected([str(folder / "run")], Selection(**options))


def test_plain_paths_without_a_choice_are_not_opened(tmp_path):
    for name in ("b.pt", "a.pt", "step_9.pt", "step_10.pt"):
        (tmp_path / name).write_bytes(b"no checkpoint")

    def chosen(*names, **options):
        series = selected([str(tmp_path / name) for name in names], Selection(**options))
        return [path.rpartition("/")[2] for path in series.paths], len(series.notes)

    assert chosen("b.pt", "a.pt") == (["b.pt", "a.pt"], 0)
    assert chosen("step_10.pt", "step_9.pt") == (["step_9.pt", "step_10.pt"], 1)
    assert chosen("step_10.pt", "step_9.pt", keep_order=True) == (["step_10.pt", "step_9.pt"], 0)
