"""What an average holds is not added to it again, under whatever name."""

import json
import shutil

import pytest
import torch
from checkpoints import load, run_request, save, state
from command_line import done, swavg
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

import swavg as library
from swavg import methods
from swavg.engine.recipe import recipe_of
from swavg.errors import RequestError
from swavg.formats.torch import opened

LARGE = 40_000
RELAXED = settings(max_examples=12, deadline=None)


def large(seed, head):
    """A body of more than what a fingerprint takes, the same for each seed, and a head."""
    generator = torch.Generator().manual_seed(seed)
    return {"a.body": torch.randn(LARGE, generator=generator), "z.head": torch.full((1,), head)}


@pytest.fixture
def run(tmp_path):
    """Five snapshots, and the mean of the first three."""
    for step in (1, 2, 3, 4, 5):
        save(tmp_path / f"step-{step}.safetensors", state(step))
    done("average", *(f"step-{n}.safetensors" for n in (1, 2, 3)), "-o", "avg.safetensors",
         cwd=tmp_path)  # fmt: skip
    return tmp_path


def update(folder, *arguments):
    told = swavg("update", *arguments, "-o", "new.safetensors", "--force", cwd=folder)
    return told.returncode, " ".join(told.stderr.split())


def test_a_checkpoint_that_is_in_the_average_is_refused_and_again_insists(run):
    code, told = update(run, "avg.safetensors", "step-2.safetensors")
    assert code == 2
    assert "error avg.safetensors holds step-2.safetensors already" in told
    assert "--again" in told
    assert not (run / "new.safetensors").exists()
    assert update(run, "avg.safetensors", "step-2.safetensors", "--again")[0] == 0
    bias = [state(step)["body.bias"] for step in (1, 2, 3, 2)]
    torch.testing.assert_close(load(run / "new.safetensors")["body.bias"], sum(bias) / 4)


def test_a_copy_under_another_name_is_the_same(run):
    shutil.copy(run / "step-3.safetensors", run / "step-9.safetensors")
    (run / "folder").mkdir()
    shutil.copy(run / "step-1.safetensors", run / "folder/model.safetensors")
    for path, known in (
        ("step-9.safetensors", "step-3"),
        ("folder", "step-1"),
        ("folder/model.safetensors", "step-1"),
    ):
        code, told = update(run, "avg.safetensors", path)
        assert code == 2
        assert f"{path.rpartition('/')[2]} (as {known}.safetensors) already" in told


def test_what_was_added_later_is_held_and_what_was_dropped_is_not(run):
    done("update", "avg.safetensors", "step-4.safetensors", "-o", "four.safetensors", cwd=run)
    for step in (1, 2, 3, 4):
        assert update(run, "four.safetensors", f"step-{step}.safetensors")[0] == 2
    moving = ["--add", "step-5.safetensors", "--drop", "step-1.safetensors"]
    done("update", "four.safetensors", *moving, "-o", "moved.safetensors", cwd=run)
    assert len(recipe_of(run / "moved.safetensors")["holds"]) == 4
    assert update(run, "moved.safetensors", "--add", "step-5.safetensors")[0] == 2
    assert update(run, "moved.safetensors", "step-1.safetensors")[0] == 0
    done("window", "avg.safetensors", "four.safetensors", "-o", "w.safetensors", cwd=run)
    assert update(run, "w.safetensors", "step-4.safetensors")[0] == 2
    assert update(run, "w.safetensors", "step-3.safetensors")[0] == 0


@RELAXED
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=8))
def test_what_is_held_is_what_went_in_and_did_not_come_out(tmp_path_factory, moves):
    folder = tmp_path_factory.mktemp("run")
    paths = {n: save(folder / f"s-{n}.safetensors", state(n)) for n in range(1, 9)}
    policy = library.Policy()
    library.average([paths[7], paths[8]], output=folder / "0", distances=False)
    held, average = {7, 8}, folder / "0"
    for turn, (number, out) in enumerate(moves, 1):
        if number in held and not out:
            with pytest.raises(RequestError, match=f"holds s-{number}"):
                methods.update(average, [paths[number]], policy=policy)
            continue
        if number in held:
            request = methods.slide(average, [], [paths[number]], policy=policy)
            held.remove(number)
        else:
            request = methods.update(average, [paths[number]], policy=policy)
            held.add(number)
        average = folder / str(turn)
        run_request(request, average)
        entries = [entry.split()[1] for entry in recipe_of(average)["holds"]]
        assert sorted(entries) == sorted(f"s-{n}.safetensors" for n in held)


def test_an_average_of_what_is_held_is_refused(run):
    done("average", "step-3.safetensors", "step-4.safetensors", "-o", "two.safetensors", cwd=run)
    assert update(run, "avg.safetensors", "two.safetensors")[0] == 2
    assert update(run, "avg.safetensors", "avg.safetensors")[0] == 2


def test_dropping_what_is_not_there_is_a_warning(run):
    code, told = update(
        run, "avg.safetensors", "--add", "step-5.safetensors", "--drop", "step-4.safetensors"
    )
    assert code == 0
    assert "warning avg.safetensors does not hold step-4.safetensors, which is dropped" in told


@pytest.mark.parametrize("suffix", ["pt", "folder", "shards"])
def test_every_format_says_what_it_holds(tmp_path, suffix):
    paths = []
    for step in (1, 2, 3):
        path = tmp_path / (f"s{step}.pt" if suffix == "pt" else f"s{step}")
        paths.append(path)
        if suffix == "pt":
            torch.save({"model": state(step), "epoch": step}, path)
        else:
            save(path / "model.safetensors", state(step))
    more = ["--max-shard-size", "150"] if suffix == "shards" else []
    output = "avg.pt" if suffix == "pt" else "avg"
    done("average", *paths[:2], *more, "-o", output, cwd=tmp_path)
    refused = swavg("update", output, paths[0], "-o", "new", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--again" in refused.stderr
    assert swavg("update", output, paths[2], "-o", "new", cwd=tmp_path).returncode == 0


def test_the_parts_of_composites_are_known_too(tmp_path):
    for step in (1, 2, 3):
        (tmp_path / f"step-{step}").mkdir()
        for rank in range(2):
            weights = {"w": torch.full((3,), 10.0 * step + rank)}
            torch.save(weights, tmp_path / f"step-{step}/consolidated.0{rank}.pth")
    done("average", "step-1", "step-2", "-o", "avg", cwd=tmp_path)
    refused = swavg("update", "avg", "step-2", "-o", "new", cwd=tmp_path)
    assert (refused.returncode, "holds step-2" in refused.stderr) == (2, True)
    done("update", "avg", "step-3", "-o", "new", cwd=tmp_path)
    found = [torch.load(tmp_path / f"new/consolidated.0{rank}.pth")["w"] for rank in range(2)]
    torch.testing.assert_close(found, [torch.full((3,), value) for value in (20.0, 21.0)])
    assert swavg("update", "new", "step-3", "-o", "x", cwd=tmp_path).returncode == 2
    told = done("update", "avg", "--add", "step-3", "--drop", "step-1", "-o", "y", cwd=tmp_path)
    assert "does not hold" not in told.stderr


def test_an_ema_is_not_resumed_with_what_it_holds(tmp_path):
    paths = [save(tmp_path / f"{name}.safetensors", state(n)) for n, name in enumerate("abc")]
    done("ema", *paths[:2], "--decay", "0.5", "-o", "ema.safetensors", cwd=tmp_path)
    resume = ["--decay", "0.5", "--resume", "ema.safetensors", "-o", "later.safetensors", "--force"]
    refused = swavg("ema", *paths[1:], *resume, cwd=tmp_path)
    assert refused.returncode == 2
    assert "ema.safetensors holds b.safetensors already" in refused.stderr
    assert done("ema", paths[2], *resume, cwd=tmp_path).returncode == 0
    assert done("ema", *paths[1:], *resume, "--again", cwd=tmp_path).returncode == 0
    refused = swavg("ema", *paths, "--decay", "0.5", "--again", cwd=tmp_path)
    assert (refused.returncode, "--resume" in refused.stderr) == (2, True)


def test_averages_of_before_are_taken(run):
    with safe_open(run / "avg.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["swavg"])
    del recipe["holds"]
    save(run / "old.safetensors", load(run / "avg.safetensors"), {"swavg": json.dumps(recipe)})
    assert update(run, "old.safetensors", "step-2.safetensors")[0] == 0
    save(run / "odd.safetensors", load(run / "avg.safetensors"),
         {"swavg": json.dumps(recipe | {"holds": [None, 3, {"a": 1}, "~", ""]})})  # fmt: skip
    assert update(run, "odd.safetensors", "step-2.safetensors")[0] == 0


def test_snapshots_that_differ_where_nobody_looked_are_told_apart_by_their_steps(tmp_path):
    tensors = large(0, 1.0)
    for step in (1, 2, 3):
        # One element in the middle of the body, between the places of a fingerprint.
        tensors["a.body"][LARGE // 2 + 700] = step
        save(tmp_path / f"step-{step}.safetensors", tensors)
    shutil.copy(tmp_path / "step-3.safetensors", tmp_path / "other.safetensors")
    done("average", "step-1.safetensors", "step-2.safetensors", "-o", "avg.safetensors",
         cwd=tmp_path)  # fmt: skip
    code, told = update(tmp_path, "avg.safetensors", "step-3.safetensors")
    assert code == 0
    assert "warning step-3.safetensors looks like step-2.safetensors" in told
    assert load(tmp_path / "new.safetensors")["a.body"][LARGE // 2 + 700] == 2
    code, told = update(tmp_path, "avg.safetensors", "other.safetensors")
    assert (code, "warning other.safetensors looks like" in told) == (0, True)


def test_the_list_ends_at_a_thousand_of_the_newest(tmp_path):
    values = [torch.full((2,), float(n)) for n in range(1003)]
    paths = [save(tmp_path / f"{n}.safetensors", {"w": w}) for n, w in enumerate(values)]
    library.average(paths, output=tmp_path / "avg", distances=False)
    held = recipe_of(tmp_path / "avg")["holds"]
    assert len(held) == 1000
    assert [entry.split()[1] for entry in (held[0], held[-1])] == [
        "3.safetensors",
        "1002.safetensors",
    ]


def test_the_same_call_gives_the_same_bytes_wherever_and_whenever(tmp_path):
    outputs = []
    for folder in ("here", "there/deeper"):
        paths = [save(tmp_path / folder / f"{n}.safetensors", large(n, 0.0)) for n in (1, 2)]
        outputs.append(tmp_path / folder / "o.safetensors")
        library.average(paths, output=outputs[-1])
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


@pytest.mark.parametrize(
    ("arguments", "pickles"),
    [
        (["list", "run"], 2),
        (["average", "run", "-o", "o.pt"], 2),
        (["ema", "a.pt", "b.pt", "--decay", "0.5", "--resume", "ema.pt", "-o", "o.pt"], 3),
        (["update", "avg.pt", "a.pt", "b.pt", "--again", "-o", "o.pt"], 3),
    ],
)
def test_each_pickle_is_read_once(tmp_path, monkeypatch, arguments, pickles):
    for n, name in enumerate(["run/x", "run/y", "a", "b", "c", "d"]):
        (tmp_path / "run").mkdir(exist_ok=True)
        torch.save({"model": state(n), "step": n}, tmp_path / f"{name}.pt")
    done("ema", "c.pt", "d.pt", "--decay", "0.5", "-o", "ema.pt", cwd=tmp_path)
    done("average", "a.pt", "b.pt", "-o", "avg.pt", cwd=tmp_path)
    read, seen = opened.read_graph, []
    monkeypatch.setattr(opened, "read_graph", lambda *more: seen.append(more[1]) or read(*more))
    done(*arguments, cwd=tmp_path)
    inputs = [archive.path for archive in seen if not archive.path.endswith("swavg-partial")]
    assert len(inputs) == pickles, inputs


@pytest.mark.parametrize("more", [[], ["--per-step"]])
def test_an_ema_with_known_steps_is_resumed_again_with_what_it_holds(tmp_path, more):
    for step in (1, 2, 3):
        save(tmp_path / f"step-{step}.safetensors", {"w": torch.full((3,), float(step))})
    decay = ["--decay", "0.5", *more]
    given = ["step-1.safetensors", "step-3.safetensors"]
    done("ema", *given, *decay, "-o", "ema.safetensors", cwd=tmp_path)
    args = (
        "ema",
        "step-2.safetensors",
        *decay,
        "--resume",
        "ema.safetensors",
        "-o",
        "o.safetensors",
    )
    assert swavg(*args, cwd=tmp_path).returncode == 2
    told = swavg(*args, "--again", cwd=tmp_path)
    if more:
        # By step there is no place for it any more.
        assert (told.returncode, "must increase" in told.stderr) == (2, True)
        return
    assert load(tmp_path / "o.safetensors")["w"].tolist() == [(0.5 + 1.5) / 2 + 1] * 3
    # It ends where it ended: what is later is added, and nothing else.
    more_of_it = ["step-3.safetensors", "step-4.safetensors"]
    save(tmp_path / "step-4.safetensors", {"w": torch.full((3,), 4.0)})
    told = done("ema", *more_of_it, *decay, "--resume", "o.safetensors", "-o", "p.safetensors",
                cwd=tmp_path)  # fmt: skip
    assert "left out 1 up to step 3" in told.stderr
    assert load(tmp_path / "p.safetensors")["w"].tolist() == [3.0] * 3


@pytest.fixture
def long_run(run):
    """The mean of more checkpoints than it lists: of 1,200, the last of them step 1200."""
    with safe_open(run / "avg.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["swavg"])
    held = [f"{step:016x} step-{step}.safetensors" for step in range(201, 1201)]
    text = json.dumps(recipe | {"n": 1200, "holds": held})
    save(run / "long.safetensors", load(run / "avg.safetensors"), {"swavg": text})
    return run


def test_what_a_long_average_no_longer_lists_is_not_said_to_be_held_or_not(long_run):
    code, told = update(long_run, "long.safetensors", "step-2.safetensors")
    newest = (
        "warning long.safetensors says of the newest 1,000 checkpoints alone that it holds them"
    )
    assert code == 0
    assert f"{newest}: whether it holds step-2.safetensors already is not known" in told
    moving = ["--add", "step-1201.safetensors", "--drop"]
    save(long_run / "step-1201.safetensors", state(6))
    code, told = update(long_run, "long.safetensors", *moving, "step-2.safetensors")
    assert code == 0
    assert f"{newest}: whether it holds step-2.safetensors, which is dropped, is not known" in told
    assert "does not hold" not in told
    # So it is for one that lists fewer, as some were dropped.
    (long_run / "new.safetensors").rename(long_run / "moved.safetensors")
    code, told = update(long_run, "moved.safetensors", *moving, "step-3.safetensors", "--again")
    assert "step-3.safetensors, which is dropped, is not known" in told


def test_what_is_later_than_all_that_a_long_average_lists_is_new(long_run):
    save(long_run / "step-1201.safetensors", state(6))
    code, told = update(long_run, "long.safetensors", "step-1201.safetensors", "--no-geometry")
    assert (code, "warning" in told) == (0, False)
