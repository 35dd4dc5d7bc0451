"""Series: steps from names and files, the order of a run, and what is chosen from it."""

import os
from itertools import pairwise
from pathlib import Path

import bundles
import numpy as np
import pytest
import torch
from checkpoints import save, state
from hypothesis import given, settings
from hypothesis import strategies as st

from swavg.errors import InputError, RequestError
from swavg.series import (
    Selection,
    Series,
    Snapshot,
    check_equal_steps,
    discover,
    in_given_order,
    select,
)
from swavg.series.names import read_name


def torch_file(path, **entries):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state(1), **entries}, path)
    return str(path)


def named(folder, *names):
    """Files that are no checkpoints: their names are enough, or they would be refused."""
    for name in names:
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not a checkpoint")
    return folder


def names(series):
    return [os.path.basename(path) for path in series.paths]


def steps(*counts, **metrics):
    """A series of snapshots at these steps, each with the metrics at its place."""
    return Series(
        tuple(
            Snapshot(f"s{count}", count, {name: values[i] for name, values in metrics.items()})
            for i, count in enumerate(counts)
        ),
        (),
        "step",
    )


NAMES = [
    ("step_10.pt", {"step": 10}),
    ("step_100.pt", {"step": 100}),
    ("step-00010.safetensors", {"step": 10}),
    ("model_step_10k.pt", {"step": 10_000}),
    ("checkpoint-500", {"step": 500}),
    ("ckpt-1000", {"step": 1000}),
    ("iter_0005000", {"step": 5000}),
    ("global_step123", {"step": 123}),
    ("step1000-unsharded", {"step": 1000}),
    ("rl_model_2000_steps.zip", {"step": 2000}),
    ("epoch=3-step=1200.ckpt", {"step": 1200, "epoch": 3}),
    ("epoch=3-step=1200-v1.ckpt", {"step": 1200, "epoch": 3}),
    ("epoch=03-val_loss=0.12.ckpt", {"epoch": 3}),
    ("epoch_3_step_100.pt", {"step": 100, "epoch": 3}),
    ("model_epoch7.pt", {"epoch": 7}),
    ("resnet50_epoch7.pt", {"epoch": 7}),
    ("epoch-12.pt", {"epoch": 12}),
    ("12epoch.pth", {"epoch": 12}),
    ("snapshot.ep.12", {"epoch": 12}),
    ("checkpoint_3_500.pt", {"epoch": 3, "step": 500}),
    ("ep0-ba500-rank0.pt", {"epoch": 0, "step": 500}),
    ("model_epoch_1_batch_500.pt", {"epoch": 1, "batch": 500}),
    ("batch_32_epoch_5.pt", {"epoch": 5}),
    ("bert-ba500.pt", {}),
    ("checkpoint12.pt", {"epoch": 12}),
    ("checkpoint-12.pth.tar", {"epoch": 12}),
    ("checkpoint-4000.pt", {"step": 4000}),
    ("12.pt", {"number": 12}),
    ("model-10.pt", {"number": 10}),
    ("model-00001-of-00002.safetensors", {}),
    ("checkpoint-00001-of-00002.pt", {}),
    ("resnet50.pth", {}),
    ("llama-2-7b.safetensors", {}),
    ("model-7b.pt", {}),
    ("model-v0.1.safetensors", {}),
    ("model_2024-01-31.pt", {}),
    ("checkpoint-20240131.pt", {}),
    ("20240131.pt", {}),
    ("checkpoint-1706700000.pt", {}),
    ("8ae63077-0104e868.pth", {}),
    ("resnet50-0676ba61.pth", {}),
    ("timestep=1000.pt", {}),
    ("valid.acc.ave_10best.pth", {}),
    ("avg_5.pt", {}),
    ("best.pt", {}),
    ("last.ckpt", {}),
    ("model_best.pth.tar", {}),
]


@pytest.mark.parametrize(("name", "counts"), NAMES)
def test_a_name_says_its_step_and_nothing_else_is_taken_for_one(name, counts):
    assert dict(read_name(name).counts) == counts


FORMS = ["step_{}.pt", "checkpoint-{}", "model_epoch{}.pt", "{}epoch.pth", "{}.pt", "iter_{:07}"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FORMS), st.integers(1, 999_999), st.sampled_from(["", ".", "run/7/"]))
def test_every_digit_of_a_step_counts(form, count, folder):
    assert list(read_name(form.format(count)).counts.values()) == [count]
    assert list(read_name(form.format(count * 10)).counts.values()) == [count * 10]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=9, unique=True), st.randoms())
def test_paths_in_any_order_come_in_step_order(tmp_path_factory, counts, random):
    folder = tmp_path_factory.mktemp("run")
    random.shuffle(counts)
    paths = [folder / f"step_{count}.pt" for count in counts]
    named(folder, *(path.name for path in paths))
    assert discover(paths).steps == tuple(sorted(counts))
    assert discover([folder]).steps == tuple(sorted(counts))
    assert discover(paths, keep_order=True).steps == tuple(counts)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_no_name_is_too_odd(name):
    for count in read_name(name).counts.values():
        assert 0 <= count < 10**18


def test_the_order_of_times_means_nothing(tmp_path):
    named(tmp_path, "step_2.pt", "step_10.pt", "step_9.pt")
    for age, name in enumerate(["step_10.pt", "step_2.pt", "step_9.pt"]):
        os.utime(tmp_path / name, (age * 1000, age * 1000))
    assert names(discover([tmp_path])) == ["step_2.pt", "step_9.pt", "step_10.pt"]


def test_hundreds_of_names_with_steps_open_no_file(tmp_path):
    named(tmp_path, *(f"step_{count}.pt" for count in range(300)))
    series = discover([tmp_path])
    assert series.steps == tuple(range(300))
    assert {snapshot.step_from for snapshot in series.snapshots} == {"name"}
    assert series.notes == ()


def test_another_order_of_paths_is_put_right_and_said(tmp_path):
    named(tmp_path, "step_2.pt", "step_10.pt")
    paths = [tmp_path / "step_10.pt", tmp_path / "step_2.pt"]
    series = discover(paths)
    assert names(series) == ["step_2.pt", "step_10.pt"]
    assert series.notes == (
        "put in step order: step_2.pt, step_10.pt (--keep-order leaves the order given)",
    )
    kept = discover(paths, keep_order=True)
    assert (names(kept), kept.notes) == (["step_10.pt", "step_2.pt"], ())


def test_where_no_step_is_known_the_given_order_stands(tmp_path):
    paths = [torch_file(tmp_path / name) for name in ("b.pt", "a.pt")]
    series = discover(paths)
    assert (names(series), series.steps, series.unit) == (["b.pt", "a.pt"], (None, None), None)
    assert series.notes == (
        "no steps known, neither from names nor from the files: the order stands",
    )


def test_a_step_comes_from_the_file_where_the_name_has_none(tmp_path):
    torch_file(tmp_path / "a.pt", global_step=300, epoch=3)
    torch_file(tmp_path / "b.pt", step=100)
    save(tmp_path / "c.safetensors", state(1), {"step": "200"})
    save(tmp_path / "d.safetensors", state(1), {"iteration": "400"})
    torch_file(tmp_path / "e.pt", num_updates=500)
    torch.save({"model": state(1), "iteration": 600}, tmp_path / "f.pt",
               _use_new_zipfile_serialization=False)  # fmt: skip
    series = discover([tmp_path])
    assert names(series) == ["b.pt", "c.safetensors", "a.pt", "d.safetensors", "e.pt", "f.pt"]
    assert series.steps == (100, 200, 300, 400, 500, 600)
    assert {snapshot.step_from for snapshot in series.snapshots} == {"file"}
    assert discover([tmp_path], read_inside=False).steps == (None,) * 6


def test_the_name_wins_over_the_file(tmp_path):
    torch_file(tmp_path / "step_7.pt", global_step=8)
    (snapshot,) = discover([tmp_path]).snapshots
    assert (snapshot.step, snapshot.step_from) == (7, "name")


def test_steps_and_epochs_meet_in_the_unit_that_all_have(tmp_path):
    torch_file(tmp_path / "step_300.pt", epoch=3)
    torch_file(tmp_path / "epoch_1.pt", global_step=100)
    series = discover([tmp_path])
    assert (names(series), series.steps) == (["epoch_1.pt", "step_300.pt"], (100, 300))
    assert series.unit == "step"
    assert [snapshot.step_from for snapshot in series.snapshots] == ["file", "name"]
    torch_file(tmp_path / "epoch_2.pt")
    series = discover([tmp_path])
    assert (series.unit, series.steps) == ("epoch", (1, 2, 3))


def test_steps_and_epochs_that_do_not_meet_are_said(tmp_path):
    for name in ("step_100.pt", "step_200.pt", "epoch_7.pt"):
        torch_file(tmp_path / name)
    series = discover([tmp_path])
    assert (names(series), series.steps) == (
        ["epoch_7.pt", "step_100.pt", "step_200.pt"],
        (None, 100, 200),
    )
    assert series.notes == (
        "ambiguous: step_100.pt, step_200.pt count in steps, epoch_7.pt in epochs:"
        " these were taken to have no step",
        "no step known for epoch_7.pt; the others have one",
    )


def test_two_of_the_same_step_are_said(tmp_path):
    named(tmp_path, "step_5.pt", "raw_step_5.pt", "step_6.pt")
    (tmp_path / "raw_step_5.pt").write_bytes(b"another one")
    series = discover([tmp_path])
    assert series.steps == (5, 5, 6)
    assert series.notes == ("2 are of step 5: raw_step_5.pt, step_5.pt",)


@pytest.mark.parametrize(
    ("form", "unit", "steps"),
    [
        ("ep{}-ba{}-rank0.pt", "step", (500, 1000, 1500)),
        ("model_epoch_{}_batch_{}.pt", "epoch", (0, 0, 1)),
    ],
)
def test_batches_tell_files_of_one_epoch_apart(tmp_path, form, unit, steps):
    own = [form.format(*counts) for counts in ((0, 500), (0, 1000), (1, 1500))]
    for name in own:
        torch_file(tmp_path / name)
    series = discover([tmp_path])
    assert (series.unit, series.steps, names(series)) == (unit, steps, own)
    check_equal_steps(series)
    assert names(select(series, Selection(last=2))) == own[1:]


@pytest.mark.parametrize("name", ["iter_{:07}", "global_step{}", "ckpt-{}", "step-{}", "step{}",
                                  "epoch=3-step={}.ckpt", "checkpoint-{}"])  # fmt: skip
def test_folders_are_called_after_their_steps(tmp_path, name):
    for step in (100, 20):
        save(tmp_path / name.format(step) / "model.safetensors", state(1))
    (tmp_path / "latest").write_text(name.format(100))
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("100")
    series = discover([tmp_path])
    assert (series.unit, series.steps) == ("step", (20, 100))
    assert series.notes == ()
    for found in (discover(sorted(tmp_path.iterdir())), in_given_order(sorted(tmp_path.iterdir()))):
        assert found.steps == (20, 100)
        ignored = "ignored latest, latest_checkpointed_iteration.txt: text that names a checkpoint"
        assert ignored in found.notes


def test_partial_and_foreign_files_are_ignored_and_said(tmp_path):
    named(tmp_path, "step_1.pt", "step_2.pt.tmp", "step_3.pt.incomplete", ".step_4.pt",
          ".out.safetensors.swavg-partial", "optimizer.pt", "optimizer_step_1.pt",
          "rng_state_0.pth", "training_args.bin", "config.json", "log.txt",
          "model-00001-of-00002.safetensors")  # fmt: skip
    (tmp_path / "step_5.pt").touch()
    (tmp_path / "iter_6").mkdir()
    series = discover([tmp_path])
    assert names(series) == ["step_1.pt"]
    assert series.notes == (
        "ignored .out.safetensors.swavg-partial, .step_4.pt, step_2.pt.tmp, 2 more:"
        " partial, temporary or empty",
        "ignored optimizer.pt, optimizer_step_1.pt, rng_state_0.pth, training_args.bin:"
        " training state, not weights",
        "ignored model-00001-of-00002.safetensors: a part of a checkpoint without its index",
        "ignored iter_6: a folder in which swavg finds no checkpoint",
    )


def test_a_pattern_filters_the_names_in_folders(tmp_path):
    named(tmp_path, "ema_step_1.pt", "step_1.pt", "step_2.pt")
    assert names(discover([tmp_path], pattern="step_*")) == ["step_1.pt", "step_2.pt"]
    with pytest.raises(InputError, match=r"holds no checkpoints that match 'x\*'"):
        discover([tmp_path], pattern="x*")


def test_copies_called_best_and_last_do_not_count_twice(tmp_path):
    for step in (100, 200):
        torch_file(tmp_path / f"step_{step}.pt", global_step=step)
    torch_file(tmp_path / "best.pt", global_step=100)
    torch_file(tmp_path / "latest.pt", global_step=250)
    torch_file(tmp_path / "final.pt")
    os.link(tmp_path / "step_200.pt", tmp_path / "last.pt")
    (tmp_path / "current.pt").symlink_to("step_200.pt")
    series = discover([tmp_path])
    assert names(series) == ["step_100.pt", "step_200.pt", "latest.pt"]
    assert series.notes == (
        "ignored last.pt: the same file as current.pt",
        "ignored current.pt: the same file as step_200.pt",
        "ignored best.pt, final.pt: by name no snapshots of the run (--pattern '*best*' takes"
        " such ones)",
    )


def test_a_folder_that_is_given_twice_counts_once(tmp_path):
    named(tmp_path, "step_1.pt", "step_2.pt")
    assert names(discover([tmp_path, tmp_path])) == ["step_1.pt", "step_2.pt"]


def test_an_average_in_the_folder_of_a_run_is_not_that_folder_from_above(tmp_path):
    named(tmp_path / "top/run", "step_1.safetensors", "step_2.safetensors")
    save(
        tmp_path / "top/run/averaged.safetensors",
        state(1),
        {"swavg": '{"method": "mean", "inputs": ["a"]}'},
    )
    folders = [tmp_path / f"other/run/step-{step}" for step in (1, 2)]
    for folder in folders:
        named(folder, "model.safetensors")
    save(
        tmp_path / "other/run/averaged.safetensors",
        state(1),
        {"swavg": '{"method": "mean", "inputs": ["a"]}'},
    )
    for place in ("top", "other"):
        assert discover([tmp_path / place]).steps == (1, 2)


def test_a_copy_is_taken_where_its_path_is_given(tmp_path):
    paths = [torch_file(tmp_path / "step_1.pt", step=1), torch_file(tmp_path / "best.pt", step=1)]
    assert names(discover(paths)) == ["step_1.pt", "best.pt"]


def test_an_earlier_average_in_the_folder_is_not_averaged_again(tmp_path):
    named(tmp_path, "step_1.pt", "step_2.pt")
    save(tmp_path / "averaged.safetensors", state(1), {"swavg": '{"method": "mean"}'})
    series = discover([tmp_path])
    assert names(series) == ["step_1.pt", "step_2.pt"]
    assert series.notes == ("ignored averaged.safetensors: swavg wrote it",)


def test_a_file_that_is_no_checkpoint_and_has_no_step_is_left_out(tmp_path):
    named(tmp_path, "step_1.pt", "vocab.bin")
    series = discover([tmp_path])
    assert names(series) == ["step_1.pt"]
    assert series.notes == ("ignored vocab.bin: not readable as a checkpoint",)


def test_a_step_comes_from_the_folder_where_the_file_is_called_model(tmp_path):
    paths = [save(tmp_path / f"checkpoint-{n}/model.safetensors", state(1)) for n in (20, 3)]
    series = discover(paths)
    assert series.steps == (3, 20)
    assert series.notes[0].startswith(
        "put in step order: checkpoint-3/model.safetensors, checkpoint-20/model.safetensors"
    )


def test_a_folder_that_is_a_checkpoint_is_one_unless_a_pattern_looks_into_it(tmp_path):
    save(tmp_path / "model.safetensors", state(1))
    for step in (10, 9):
        save(tmp_path / f"checkpoint-{step}/model.safetensors", state(1))
    series = discover([tmp_path])
    assert series.paths == (str(tmp_path),)
    assert "give --pattern 'checkpoint-*'" in series.notes[0]
    assert discover([tmp_path], pattern="checkpoint-*").steps == (9, 10)


def test_one_snapshot_does_not_make_its_folder_a_checkpoint(tmp_path):
    save(tmp_path / "step-100.safetensors", state(1))
    series = discover([tmp_path])
    assert (names(series), series.steps) == (["step-100.safetensors"], (100,))


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        discover([tmp_path / "nowhere.pt"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no checkpoints"):
        discover([tmp_path / "empty"])


def test_the_one_folder_below_that_has_checkpoints_is_searched(tmp_path):
    named(tmp_path, "logs/version_0/checkpoints/epoch=1.ckpt", "logs/.cache/old.pt")
    (tmp_path / "logs" / "version_0" / "round").symlink_to(tmp_path / "logs")
    series = discover([tmp_path / "logs"])
    assert names(series) == ["epoch=1.ckpt"]
    (note,) = (each for each in series.notes if "the one folder" in each)
    assert f"the checkpoints of {tmp_path}/logs/version_0/checkpoints," in note
    named(tmp_path, "logs/version_1/checkpoints/epoch=1.ckpt")
    with pytest.raises(InputError) as caught:
        discover([tmp_path / "logs"])
    for version in range(2):
        assert f"logs/version_{version}/checkpoints" in caught.value.hint


def test_a_folder_below_is_searched_only_where_no_other_can_be_meant(tmp_path):
    named(tmp_path, "run/a/step_1.pt", "run/zz/step_2.pt", "arrays/data/shard_1.npz")
    for number in range(1000):
        (tmp_path / "run" / f"b{number}").mkdir()
    with pytest.raises(InputError, match="holds no checkpoints") as caught:
        discover([tmp_path / "run"])
    assert "run/a." in caught.value.hint
    # Arrays that no name calls weights may be what is learnt from.
    with pytest.raises(InputError, match="arrays: holds no checkpoints") as caught:
        discover([tmp_path / "arrays"])
    assert "arrays/data." in caught.value.hint
    named(tmp_path, "run-of-jax/ckpt/step_1.npz")
    assert names(discover([tmp_path / "run-of-jax"])) == ["step_1.npz"]


def test_of_checkpoints_that_are_folders_the_one_that_has_them_is_searched(tmp_path):
    for step in (100, 200):
        save(tmp_path / f"out/run/checkpoint-{step}/model.safetensors", state(step))
    assert discover([tmp_path / "out"]).steps == (100, 200)


def test_plain_paths_are_ordered_without_a_look_inside(tmp_path):
    named(tmp_path, "step_10.pt", "step_9.pt", "a.pt")
    paths = [tmp_path / "step_10.pt", tmp_path / "step_9.pt"]
    assert in_given_order(paths).steps == (9, 10)
    assert in_given_order(paths, keep_order=True).steps == (10, 9)
    mixed = in_given_order([*paths, tmp_path / "a.pt"])
    assert (names(mixed), mixed.notes) == (["step_10.pt", "step_9.pt", "a.pt"], ())
    assert in_given_order([tmp_path]) is None


SERIES = steps(100, 200, 300, 450, 500, loss=[5.0, 1.0, 4.0, 2.0, 3.0])

CHOICES = [
    ({"last": 2}, (450, 500)),
    ({"last": 5}, (100, 200, 300, 450, 500)),
    ({"last": 9, "at_most": True}, (100, 200, 300, 450, 500)),
    ({"from_step": 200}, (200, 300, 450, 500)),
    ({"to_step": 200}, (100, 200)),
    ({"from_step": 201, "to_step": 499}, (300, 450)),
    ({"from_step": 300, "to_step": 300}, (300,)),
    ({"every": 1}, (100, 200, 300, 450, 500)),
    ({"every": 100}, (100, 200, 300, 500)),
    ({"every": 200}, (100, 300, 500)),
    ({"every": 10_000}, (500,)),
    ({"every": 100, "last": 2}, (300, 500)),
    ({"every": 100, "to_step": 499}, (100, 200, 300, 450)),
    ({"every": 150, "to_step": 450, "last": 2}, (300, 450)),
    ({"best": 2, "metric": "loss"}, (200, 450)),
    ({"best": 2}, (200, 450)),
    ({"best": 2, "metric": "loss", "mode": "max"}, (100, 300)),
    ({"best": 1, "metric": "loss", "from_step": 300}, (450,)),
    ({"best": 1, "metric": "loss", "every": 200}, (500,)),
]


@pytest.mark.parametrize(("options", "chosen"), CHOICES)
def test_bounds_come_first_then_spacing_then_count(options, chosen):
    assert select(SERIES, Selection(**options)).steps == chosen


def test_the_choice_keeps_an_order_that_was_to_be_kept():
    shuffled = steps(300, 100, 500, 200)
    assert select(shuffled, Selection(last=2)).steps == (300, 500)
    assert select(shuffled, Selection(every=200)).steps == (300, 100, 500)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, unique=True), st.integers(1, 400))
def test_spaced_snapshots_end_in_the_newest_and_no_other_would_fit(counts, spacing):
    kept = select(steps(*sorted(counts)), Selection(every=spacing)).steps
    assert kept[-1] == max(counts)
    assert all(b - a >= spacing for a, b in pairwise(kept))
    for newer, older in zip(kept[::-1], [*kept[::-1][1:], -1], strict=True):
        assert not [c for c in counts if older < c <= newer - spacing]


def test_fewer_than_asked_for_is_an_error_with_both_counts():
    with pytest.raises(RequestError, match=r"Asked for the last 7 checkpoints and found 5: .*"):
        select(SERIES, Selection(last=7))
    with pytest.raises(RequestError, match=r"the best \(by loss\) 3 checkpoints and found 2"):
        select(SERIES, Selection(best=3, metric="loss", to_step=200))
    fewer = Selection(best=3, metric="loss", to_step=200, at_most=True)
    assert select(SERIES, fewer).steps == (100, 200)


def test_bounds_that_leave_nothing_are_an_error_even_at_most():
    with pytest.raises(RequestError, match="has a step from 501: they are 100 to 500"):
        select(SERIES, Selection(from_step=501, last=1, at_most=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last": 0}, "last=0 must be at least 1"),
        ({"every": 0}, "every=0 must be at least 1"),
        ({"last": 1, "best": 1}, "exclude each other"),
        ({"mode": "min"}, "Add best="),
        ({"best": 1, "mode": "most"}, "not 'most'"),
        ({"from_step": 2, "to_step": 1}, "from_step=2 is behind to_step=1"),
    ],
)
def test_requests_that_mean_nothing_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        select(SERIES, Selection(**options))


def test_what_has_no_step_is_left_out_by_step_and_said():
    series = Series((Snapshot("x.pt"), *SERIES.snapshots), (), "step")
    chosen = select(series, Selection(last=5))
    assert chosen.steps == (100, 200, 300, 450, 500)
    assert chosen.notes == ("left out for want of a step: x.pt",)
    with pytest.raises(RequestError, match="none of the checkpoints has one"):
        select(Series((Snapshot("x.pt"),)), Selection(from_step=1))


def test_the_last_of_a_series_without_steps_are_the_last_given():
    series = Series((Snapshot("a"), Snapshot("b"), Snapshot("c")))
    assert select(series, Selection(last=2)).paths == ("b", "c")


def test_a_path_given_twice_counts_twice():
    series = Series((Snapshot("a", 1), Snapshot("b", 2), Snapshot("b", 2)), (), "step")
    assert select(series, Selection(last=2)).paths == ("b", "b")


def test_arrays_beside_checkpoints_of_other_formats_are_no_snapshots(tmp_path):
    import h5py
    import numpy as np

    for step in (10, 20):
        torch_file(tmp_path / f"step-{step}.pt")
    np.savez(tmp_path / "eval-step-30.npz", predictions=np.ones(2))
    with h5py.File(tmp_path / "features.h5", "w") as file:
        file["x"] = np.ones(2)
    series = discover([tmp_path])
    assert names(series) == ["step-10.pt", "step-20.pt"]
    assert any("arrays, beside checkpoints of other formats" in note for note in series.notes)
    assert names(discover([tmp_path], pattern="*.npz")) == ["eval-step-30.npz"]
    for name in ("step-10.pt", "step-20.pt", "features.h5"):
        os.remove(tmp_path / name)
    np.savez(tmp_path / "eval-step-40.npz", predictions=np.ones(2))
    assert [snapshot.step for snapshot in discover([tmp_path]).snapshots] == [30, 40]


@pytest.mark.parametrize("name", ["flax_model.msgpack", "model.keras", "model.weights.h5"])
def test_a_folder_that_is_called_after_a_step_stands_for_its_only_file(tmp_path, name):
    for step in (10, 20):
        folder = tmp_path / f"out/run/checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"x")
        (folder / "config.json").write_text("{}")
        (folder / "opt_state.msgpack").write_bytes(b"x")
    for place in ("out/run", "", "out//"):
        series = discover([f"{tmp_path}/{place}"])
        assert [os.path.relpath(path, tmp_path) for path in series.paths] == [
            f"out/run/checkpoint-{step}/{name}" for step in (10, 20)
        ]
        assert (series.unit, series.steps) == ("step", (10, 20))
    (tmp_path / "out/run/checkpoint-20/other.h5").write_bytes(b"x")
    with pytest.raises(InputError, match="holds no checkpoints"):
        discover([tmp_path / "out/run"], pattern="checkpoint-2*")


@pytest.mark.parametrize("form", ["x-{}", "weights.0{}-0.39", "model_{}"])
def test_a_folder_of_several_of_tensorflows_is_a_run_whatever_they_are_called(tmp_path, form):
    names = [form.format(number) for number in (1, 2)]
    for name in names:
        bundles.write(tmp_path, {"w": np.ones(2, np.float32)}, name=name)
    (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{names[-1]}"')
    found = discover([tmp_path])
    assert found.paths == tuple(str(tmp_path / f"{name}.index") for name in names)
