"""``--if-stale``: for pipelines that are run again and again."""

import json
import os

import pytest
from command_line import done, swavg
from run_of_five import STEPS, assert_bias, bias

AVERAGE = ["average", "run", "--last", 2, "-o", "a.safetensors", "--if-stale"]


def stamps(path):
    facts = path.stat()
    return facts.st_ino, facts.st_mtime_ns


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ([], "a.safetensors"),
        (["-o", "a.pt"], "a.pt"),
        (["--max-shard-size", "1kB", "-o", "a"], "a"),
    ],
)
def test_an_output_of_the_same_recipe_and_inputs_stays(run, more, name):
    first = done(*AVERAGE, *more, cwd=run)
    before = stamps(run / name)
    again = done(*AVERAGE, *more, cwd=run)
    assert again.stdout == first.stdout == f"{name}\n"
    assert "up to date" in again.stderr
    assert stamps(run / name) == before
    found = json.loads(done(*AVERAGE, *more, "--json", cwd=run).stdout)
    assert (found["output"], found["up_to_date"]) == (name, True)


def newer(run):
    path = next((run / "run").glob("step_100-*"))
    os.utime(path, ns=(1 << 62, 1 << 62))
    return []


def other_bytes(run):
    # Of the same size, and older than the output.
    one, other = (next((run / "run").glob(f"step_{step}-*")) for step in (40, 20))
    times = one.stat()
    one.write_bytes(other.read_bytes())
    os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))
    return []


@pytest.mark.parametrize(
    "change", [newer, other_bytes, lambda run: ["--last", 3], lambda run: ["--dtype", "bfloat16"]]
)
def test_another_input_or_option_makes_it_stale(run, change):
    done(*AVERAGE, cwd=run)
    before = stamps(run / "a.safetensors")
    finished = done(*AVERAGE, *change(run), cwd=run)
    assert "up to date" not in finished.stderr
    assert stamps(run / "a.safetensors") != before


def test_what_is_no_average_is_not_replaced(run):
    (run / "a.safetensors").write_bytes(next((run / "run").glob("step_10-*")).read_bytes())
    assert swavg(*AVERAGE, cwd=run).returncode == 7
    done(*AVERAGE, "--force", cwd=run)
    assert_bias(run / "a.safetensors", bias(STEPS[-2:]))


def test_of_a_sweep_all_must_be_there(run):
    args = ["sweep", "run", "-r", "uniform:last=2", "-r", "ema:decay=0.5", "-d", "out",
            "--if-stale"]  # fmt: skip
    done(*args, cwd=run)
    assert "up to date" in done(*args, cwd=run).stderr
    os.unlink(run / "out" / "uniform-last-2.safetensors")
    assert "up to date" not in done(*args, cwd=run).stderr
    assert len(os.listdir(run / "out")) == 2


def test_what_was_put_into_the_folder_of_an_output_later_makes_it_no_younger(run):
    call = [*AVERAGE, "--max-shard-size", "1kB", "-o", "a"]
    done(*call, cwd=run)
    newest = max(path.stat().st_mtime_ns for path in (run / "a").iterdir())
    os.utime(next((run / "run").glob("step_100-*")), ns=(newest + 1, newest + 1))
    (run / "a" / "notes.txt").write_text("mine")
    os.utime(run / "a", ns=(newest + 2, newest + 2))
    found = swavg(*call, cwd=run)
    assert "up to date" not in found.stderr
    assert (run / "a" / "notes.txt").read_text() == "mine"
