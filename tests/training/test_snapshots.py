"""The folder of snapshots: what stays, what goes, and that nothing else is ever touched."""

import json
import math
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from make import debris
from ranks import ranks

import swavg
from swavg.errors import OutputError, RequestError
from swavg.training import Snapshots, save_snapshot
from swavg.training.power import PowerEMA


def weights(step):
    return {"w": torch.full((4,), float(step))}


def fill(snapshots, losses, start=1):
    for step, loss in enumerate(losses, start):
        snapshots.save(weights(step), step, {"val_loss": loss})


def steps(folder):
    return sorted(int(name.split("-")[1].split(".")[0]) for name in os.listdir(folder))


def test_every_n_steps_the_last_k_stay(tmp_path):
    snapshots = Snapshots(tmp_path / "run" / "snapshots", every=10, keep=3)
    saved = [snapshots.save(weights(step), step) for step in range(5, 56, 5)]
    assert [path is not None for path in saved] == [step % 10 == 0 for step in range(5, 56, 5)]
    assert steps(snapshots.folder) == [30, 40, 50]
    assert [path.name for path in snapshots.paths] == [
        f"step-{step}.safetensors" for step in (30, 40, 50)
    ]
    assert snapshots.best_paths == ()
    assert safetensors.torch.load_file(snapshots.paths[0])["w"].tolist() == [30.0] * 4


def test_a_url_is_refused_and_never_becomes_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(1, 1)
    power = PowerEMA(model)
    power.update()
    for write in (
        lambda: Snapshots("s3://bucket/run"),
        lambda: save_snapshot("s3://bucket/a.safetensors", model),
        lambda: power.save("s3://bucket/run"),
    ):
        with pytest.raises(OutputError, match="Give one, and upload the result"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_without_limits_all_stay(tmp_path):
    fill(Snapshots(tmp_path), [3.0] * 8)
    assert steps(tmp_path) == [*range(1, 9)]


def test_the_best_stay_beside_the_last(tmp_path):
    snapshots = Snapshots(tmp_path, keep=2, best=2, metric="val_loss")
    fill(snapshots, [0.9, 0.2, 0.5, 0.3, math.nan, 0.8, -math.inf, 0.7])
    assert steps(tmp_path) == [2, 4, 7, 8]
    assert [path.name for path in snapshots.best_paths] == [
        "step-2.safetensors", "step-4.safetensors",
    ]  # fmt: skip


def test_higher_is_better_by_the_metrics_name_or_by_mode(tmp_path):
    for folder, metric, mode in ((tmp_path / "a", "val_acc", None), (tmp_path / "b", "x", "max")):
        snapshots = Snapshots(folder, best=1, metric=metric, mode=mode)
        for step, value in enumerate([0.1, 0.9, 0.9, 0.3]):
            snapshots.save(weights(step), step, {metric: torch.tensor(value)})
        # Of equals the earlier.
        assert steps(folder) == [1]


@pytest.mark.filterwarnings("ignore:No 'val_loss'")
@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.one_of(st.none(), st.sampled_from([0.1, 0.2, 0.3, math.nan, math.inf])), max_size=9
    ),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 9),
)
def test_a_run_in_two_processes_keeps_what_one_keeps(
    tmp_path_factory, losses, keep, best, interrupted
):
    if keep == best == 0:
        keep = 1
    folder = tmp_path_factory.mktemp("run")
    made = {"keep": keep, "best": best, "metric": "val_loss"}
    snapshots = Snapshots(folder, **made)
    for step, loss in enumerate(losses):
        if step == interrupted:
            snapshots = Snapshots(folder, **made)
        snapshots.save(weights(step), step, None if loss is None else {"val_loss": loss})
        so_far = list(enumerate(losses[: step + 1]))
        finite = [(s, v) for s, v in so_far if v is not None and math.isfinite(v)]
        ranked = sorted(finite, key=lambda pair: pair[1])[:best]
        # What fell out once cannot come back; a best of all is a best of every part.
        last = keep if ranked else max(keep, 1)
        expected = {s for s, _ in so_far[-last:]} if last else set()
        expected |= {s for s, _ in ranked}
        assert set(steps(folder)) == expected


def test_where_none_has_the_metric_the_newest_stays_and_a_warning_says_so_once(tmp_path):
    snapshots = Snapshots(tmp_path, best=2, metric="val_loss")
    snapshots.save(weights(1), 1, {"eval_loss": 0.5})
    with pytest.warns(match=r"No 'val_loss' .* at step 2 \(there are: eval_loss\): .* keep="):
        snapshots.save(weights(2), 2, {"eval_loss": 0.4})
    # Once, and never when there is one by which to choose.
    snapshots.save(weights(3), 3)
    assert steps(tmp_path) == [3]
    fill(snapshots, [0.3], start=4)
    snapshots.save(weights(5), 5)
    assert steps(tmp_path) == [4]


def test_files_of_others_are_never_deleted_or_replaced(tmp_path):
    mine = save_snapshot(tmp_path / "step-1.safetensors", weights(1), step=1)
    strangers = {
        "step-2.safetensors": b"not a checkpoint",
        "step-2.pt": b"x",
        "step-002.safetensors": mine.read_bytes(),
        "best-step-3.safetensors": mine.read_bytes(),
        "step-3.safetensors.txt": b"x",
    }
    for name, data in strangers.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "step-9.safetensors").mkdir()
    snapshots = Snapshots(tmp_path, keep=1)
    assert snapshots.paths == ()
    with pytest.raises(OutputError, match="exists already"):
        snapshots.save(weights(2), 2)
    for step in (3, 4, 5):
        snapshots.save(weights(step), step)
    assert set(os.listdir(tmp_path)) == {
        *strangers, "step-1.safetensors", "step-5.safetensors", "step-9.safetensors",
    }  # fmt: skip
    assert (tmp_path / "step-2.safetensors").read_bytes() == b"not a checkpoint"


def test_a_file_that_was_put_in_the_place_of_one_is_not_deleted(tmp_path):
    snapshots = Snapshots(tmp_path, keep=1)
    snapshots.save(weights(1), 1)
    (tmp_path / "step-1.safetensors").unlink()
    save_snapshot(tmp_path / "step-1.safetensors", weights(7), step=1)
    snapshots.save(weights(2), 2)
    assert steps(tmp_path) == [1, 2]
    os.unlink(tmp_path / "step-2.safetensors")
    snapshots.save(weights(3), 3)
    assert steps(tmp_path) == [1, 3]


def test_an_average_of_snapshots_is_none_of_them_whatever_its_name(tmp_path):
    swavg.average(
        [Snapshots(tmp_path / "run").save(weights(step), step) for step in (1, 2)],
        output=tmp_path / "step-2.safetensors",
    )
    snapshots = Snapshots(tmp_path, keep=1)
    assert snapshots.paths == ()
    for step in (3, 4):
        snapshots.save(weights(step), step)
    assert (tmp_path / "step-2.safetensors").exists()
    assert not (tmp_path / "step-3.safetensors").exists()


def test_two_names_share_a_folder(tmp_path):
    raw = Snapshots(tmp_path, keep=1)
    ema = Snapshots(tmp_path, keep=2, name="ema-step{step:04d}")
    for step in (1, 2, 3):
        raw.save(weights(step), step)
        ema.save(weights(step), step, recipe={"method": "ema", "decay": 0.9})
    assert sorted(os.listdir(tmp_path)) == [
        "ema-step0002.safetensors", "ema-step0003.safetensors", "step-3.safetensors",
    ]  # fmt: skip
    assert len(Snapshots(tmp_path, keep=2, name="ema-step{step:04d}").paths) == 2


def test_a_run_that_goes_back_writes_its_steps_anew(tmp_path):
    fill(Snapshots(tmp_path, keep=3), [1.0] * 6)
    snapshots = Snapshots(tmp_path, keep=3)
    for step in (3, 4, 5):
        snapshots.save({"w": torch.full((4,), step + 0.5)}, step)
    assert steps(tmp_path) == [3, 4, 5]
    assert safetensors.torch.load_file(tmp_path / "step-5.safetensors")["w"][0] == 5.5


def test_nothing_is_deleted_before_the_new_one_is_there(tmp_path, monkeypatch):
    snapshots = Snapshots(tmp_path, keep=2)
    fill(snapshots, [1.0, 1.0])

    def full(fd, data, offset):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OutputError, match="disk is full"):
            snapshots.save(weights(3), 3)
    assert steps(tmp_path) == [1, 2]
    assert debris(tmp_path) == []

    def stop(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", stop)
        with pytest.raises(KeyboardInterrupt):
            Snapshots(tmp_path, keep=2).save(weights(3), 3)
    assert steps(tmp_path) == [1, 2, 3]
    Snapshots(tmp_path, keep=2).save(weights(4), 4)
    assert steps(tmp_path) == [3, 4]


@pytest.mark.slow
def test_the_command_line_reads_the_folder(tmp_path):
    folder = tmp_path / "run"
    snapshots = Snapshots(folder, every=100, keep=3, best=1, metric="val_loss")
    for step in range(100, 701, 100):
        snapshots.save(weights(step), step, {"val_loss": abs(step - 200) / 100})

    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "swavg", *map(str, arguments)],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip

    listed = json.loads(command("list", folder, "--json"))
    assert [entry["step"] for entry in listed["checkpoints"]] == [200, 500, 600, 700]
    assert [entry["metrics"]["val_loss"] for entry in listed["checkpoints"]] == [0, 3, 4, 5]
    out = tmp_path / "out.safetensors"
    command("average", folder, "--last", "3", "-o", out)
    assert safetensors.torch.load_file(out)["w"][0] == 600
    command("average", folder, "--best", "2", "--metric", "val_loss", "-o", out, "--force")
    assert safetensors.torch.load_file(out)["w"][0] == 350


@pytest.mark.parametrize("count", [1, 2])
def test_even_a_folder_of_few_snapshots_is_a_series(count, tmp_path):
    from swavg.series import discover

    fill(Snapshots(tmp_path), [1.0] * count)
    assert discover([tmp_path]).steps == tuple(range(1, count + 1))


_RANKS = """
from swavg.training import Snapshots
snapshots = Snapshots(f"{folder}/run", every=2, keep=1, best=1, metric="loss")
sharded = fully_shard(nn.Linear(3, 3), mesh=init_device_mesh("cpu", (2,)))
for step in range(1, 9):
    snapshots.save(sharded if step > 4 else nn.Linear(3, 3), step, {"loss": abs(step - 3.9)})
print(*[path.name for path in snapshots.paths])
"""


@pytest.mark.slow
def test_rank_0_writes_and_deletes(tmp_path):
    expected = "step-4.safetensors step-8.safetensors\n"
    assert ranks(_RANKS, tmp_path) == [expected, expected]
    assert sorted(os.listdir(tmp_path / "run")) == expected.split()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"every": 0}, "every is 0"),
        ({"keep": -1}, "keep is -1"),
        ({"keep": 0}, "No snapshot would stay"),
        ({"best": 0}, "No snapshot would stay"),
        ({"best": 1}, "by which metric"),
        ({"best": 1, "metric": "size"}, "lower or higher size"),
        ({"best": 1, "metric": "loss", "mode": "low"}, "mode is 'low'"),
        ({"name": "step"}, "'step' is no name"),
        ({"name": "{step}-{step}"}, "no name"),
        ({"name": "{step}-{epoch}"}, "no name"),
        ({"name": "a/{step}"}, "no name"),
        ({"name": "{step"}, "no name"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(arguments, words, tmp_path):
    with pytest.raises(RequestError, match=words):
        Snapshots(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_a_run_that_went_back_and_died_again_keeps_what_was_written_last(tmp_path):
    def save(step):
        Snapshots(tmp_path, keep=3).save(weights(step), step)

    for step in range(10, 101, 10):
        save(step)
    # Two processes go on from step 60 and 70; steps 80 to 100 of the first are left over.
    save(70)
    save(80)
    assert steps(tmp_path) == [70, 80, 100]
    save(90)
    assert steps(tmp_path) == [70, 80, 90]


def test_a_file_in_the_way_is_told_with_a_way_out(tmp_path):
    save_snapshot(tmp_path / "step-33.safetensors", weights(1), step=33)
    with pytest.raises(OutputError, match="was not written by Snapshots") as caught:
        Snapshots(tmp_path, keep=3).save(weights(33), 33)
    assert "another name=" in caught.value.hint
    assert safetensors.torch.load_file(tmp_path / "step-33.safetensors")["w"][0] == 1
    with pytest.raises(OutputError, match="is no folder to write to"):
        Snapshots(tmp_path / "step-33.safetensors")


@pytest.mark.parametrize("options", [{"keep": "3"}, {"every": 1.5}, {"every": True}, {"best": -1}])
def test_counts_are_whole_numbers(tmp_path, options):
    with pytest.raises(RequestError, match="must be"):
        Snapshots(tmp_path, metric="val_loss", **options)


def test_a_model_in_the_place_of_the_step_is_named_and_not_printed(tmp_path):
    with pytest.raises(RequestError, match="step is Linear; it must be a whole number"):
        Snapshots(tmp_path).save(3, torch.nn.Linear(2, 2))


@pytest.mark.parametrize("name", ["s-{step:,}", "{step:x}", "{step:>8}", "{step:+d}", "{step:e}"])
def test_names_that_cannot_be_read_back_are_refused(tmp_path, name):
    with pytest.raises(RequestError, match="is no name of snapshots"):
        Snapshots(tmp_path, name=name)


def test_what_a_killed_process_was_writing_goes_once_it_is_old(tmp_path):
    fresh = tmp_path / ".step-10.safetensors.0a1b2c3d.swavg-partial"
    stale = tmp_path / ".step-20.safetensors.0a1b2c3d.swavg-partial"
    foreign = tmp_path / ".other.safetensors.0a1b2c3d.swavg-partial"
    for path in (fresh, stale, foreign):
        path.write_bytes(b"half")
    for path in (stale, foreign):
        os.utime(path, (0, 0))
    Snapshots(tmp_path)
    assert fresh.exists()
    assert foreign.exists()
    assert not stale.exists()


def test_a_link_to_nowhere_and_files_that_go_meanwhile_are_no_harm(tmp_path, monkeypatch):
    os.symlink(tmp_path / "gone", tmp_path / "step-5.safetensors")
    Snapshots(tmp_path, keep=2).save(weights(1), 1)
    listed = type(tmp_path).iterdir

    def with_another(folder):
        # Another process deletes one between the look into the folder and that at the file.
        yield from listed(folder)
        yield folder / "step-7.safetensors"
        yield folder / ".step-8.safetensors.0a1b2c3d.swavg-partial"

    monkeypatch.setattr(type(tmp_path), "iterdir", with_another)
    assert [path.name for path in Snapshots(tmp_path, keep=2).paths] == ["step-1.safetensors"]
