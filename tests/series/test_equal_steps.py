"""Several files of one step: the same bytes count once, different ones are refused."""

import shutil

import pytest
import torch
from checkpoints import save, state
from command_line import done, swavg

from swavg.errors import RequestError
from swavg.series import Selection, check_equal_steps, discover, select
from swavg.storage import fingerprints
from swavg.storage.pool import Pool
from swavg.storage.sources import LocalFile


def write(path, value, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {"w": torch.full((3,), float(value))}, **more}, path)
    return path


def names(series):
    return [path.rpartition("/")[2] for path in series.paths]


@pytest.mark.parametrize(
    ("name", "copy"),
    [
        ("epoch_{}.pt", "epoch_3_copy.pt"),
        ("model.pt.ep{}", "model.pt"),
        ("epoch={}.ckpt", "epoch=3-last.ckpt"),
        ("{}epoch.pth", "newest.pth"),
        ("checkpoint{}.pt", "checkpoint3_v1.pt"),
    ],
)
def test_the_same_bytes_count_once(tmp_path, name, copy):
    for epoch in (1, 2, 3):
        write(tmp_path / name.format(epoch), epoch, epoch=epoch)
    shutil.copy(tmp_path / name.format(3), tmp_path / copy)
    series = discover([tmp_path])
    assert names(series) == [name.format(epoch) for epoch in (1, 2, 3)]
    assert any("the same bytes as" in note for note in series.notes)
    check_equal_steps(series)


def test_a_copy_without_any_step_counts_once(tmp_path):
    for step in (1, 2):
        save(tmp_path / f"step-{step}.safetensors", state(step))
    shutil.copy(tmp_path / "step-1.safetensors", tmp_path / "newest.safetensors")
    series = discover([tmp_path])
    assert names(series) == ["step-1.safetensors", "step-2.safetensors"]
    assert series.notes == ("ignored newest.safetensors: the same bytes as step-1.safetensors",)


def test_a_folder_with_the_same_bytes_counts_once(tmp_path):
    for step in (500, 1000):
        save(tmp_path / f"checkpoint-{step}/model.safetensors", state(step))
    shutil.copytree(tmp_path / "checkpoint-1000", tmp_path / "newest")
    (tmp_path / "newest/trainer_state.json").write_text('{"global_step": 1000}')
    assert names(discover([tmp_path])) == ["checkpoint-500", "checkpoint-1000"]


@pytest.mark.parametrize(
    ("name", "other", "pattern"),
    [
        ("epoch_{}.pt", "epoch_{}_raw.pt", "epoch_*[0-9].pt"),
        ("step_{}.pt", "critic_step_{}.pt", "step_*.pt"),
        ("epoch_{}.pt", "epoch_{}.pth", "epoch_*.pt"),
        ("{}.pt", "net_{}.pt", "[0-9]*.pt"),
    ],
)
def test_different_ones_are_refused_and_the_pattern_that_is_offered_works(
    tmp_path, name, other, pattern
):
    for number in (8, 9, 10):
        write(tmp_path / "run" / name.format(number), number)
        write(tmp_path / "run" / other.format(number), 100)
    told = swavg("average", "run", "-o", "o.pt", cwd=tmp_path)
    assert told.returncode == 2
    assert f"{name.format(8)} and {other.format(8)} are of the same" in told.stderr
    assert f"--pattern '{pattern}'" in told.stderr
    assert not (tmp_path / "o.pt").exists()
    done("average", "run", "--pattern", pattern, "-o", "o.pt", cwd=tmp_path)
    assert torch.load(tmp_path / "o.pt")["model"]["w"].tolist() == [9.0] * 3
    # What there is can be looked at.
    assert done("list", "run", cwd=tmp_path).returncode == 0


def test_only_what_is_chosen_is_judged(tmp_path):
    for name in ("step_1.pt", "step_1_raw.pt", "step_2.pt", "step_3.pt"):
        write(tmp_path / name, len(name))
    series = discover([tmp_path])
    check_equal_steps(select(series, Selection(last=2)))
    with pytest.raises(RequestError, match=r"step_1\.pt and step_1_raw\.pt .* step 1 and differ"):
        check_equal_steps(select(series, Selection(last=3)))


def test_where_no_pattern_tells_them_apart_the_files_are_to_be_given(tmp_path):
    for name in ("epoch=3-step=12.ckpt", "epoch=3-step=12-v1.ckpt"):
        write(tmp_path / name, len(name))
    with pytest.raises(RequestError) as caught:
        check_equal_steps(discover([tmp_path]))
    pattern = caught.value.hint.partition("pattern='")[2].partition("'")[0]
    assert not pattern or len(discover([tmp_path], pattern=pattern)) == 1


def test_paths_that_were_given_and_folders_of_two_runs_are_not_judged(tmp_path):
    for folder in ("a", "b"):
        for step in (1, 2):
            write(tmp_path / folder / f"step_{step}.pt", hash(folder) % 7 + step)
    check_equal_steps(discover([tmp_path / "a", tmp_path / "b"]))
    given = [tmp_path / "a/step_1.pt", write(tmp_path / "a/raw_step_1.pt", 50)]
    assert len(discover(given)) == 2
    check_equal_steps(discover(given))


def test_ends_of_several_runs_are_no_run(tmp_path):
    for number, name in enumerate(["lr3e-4.pt", "lr1e-4.pt", "more_dropout.pt"]):
        write(tmp_path / "soup" / name, number, epoch=8 if number == 1 else 10)
    done("average", "soup", "-o", "o.pt", cwd=tmp_path)
    assert torch.load(tmp_path / "o.pt")["model"]["w"].tolist() == [1.0] * 3


def test_steps_inside_tell_files_of_one_epoch_apart(tmp_path):
    for name, step in (("epoch_3_a.pt", 200), ("epoch_3_b.pt", 100), ("epoch_4.pt", 300)):
        write(tmp_path / name, step, step=step)
    series = discover([tmp_path])
    assert names(series) == ["epoch_3_b.pt", "epoch_3_a.pt", "epoch_4.pt"]
    check_equal_steps(series)


def test_a_copy_counts_once_where_no_steps_are_known(tmp_path):
    for number, name in enumerate(["a.pt", "b.pt"]):
        write(tmp_path / name, number)
    shutil.copy(tmp_path / "b.pt", tmp_path / "best.pt")
    series = discover([tmp_path])
    assert names(series) == ["a.pt", "b.pt"]
    assert "ignored best.pt: the same bytes as b.pt" in series.notes


def test_an_end_of_an_epoch_and_a_step_in_it_are_two(tmp_path):
    for name, steps in (("checkpoint_3_500.pt", 500), ("checkpoint3.pt", 600)):
        write(tmp_path / name, steps, optimizer_history=[{"num_updates": steps}])
    series = discover([tmp_path])
    assert len(series) == 2
    check_equal_steps(series)


@pytest.mark.parametrize("size", [0, 1, 4096, 65_536, 65_537, 3_000_001])
def test_a_fingerprint_is_of_the_bytes_and_not_of_the_file(tmp_path, size):
    data = bytearray(torch.arange(size, dtype=torch.int64).mul(7919).to(torch.uint8).numpy())
    (tmp_path / "a").write_bytes(data)
    (tmp_path / "b").write_bytes(data)
    with Pool() as pool:
        one, other = ([LocalFile.find(str(tmp_path / name))] for name in "ab")
        found = fingerprints.fingerprint(pool, one)
        assert found == fingerprints.fingerprint(pool, other)
        assert found[1] == (size <= 65_536)
        assert fingerprints.same_bytes(pool, one, other)
    for place in {0, size - 1} if size else ():
        data[place] ^= 1
        (tmp_path / "b").write_bytes(data)
        with Pool() as pool:
            other = [LocalFile.find(str(tmp_path / "b"))]
            assert found != fingerprints.fingerprint(pool, other)
            assert not fingerprints.same_bytes(pool, one, other)
        data[place] ^= 1
