"""``swavg soup``: scores by the user's command, or by the model."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import landscape_models
import pytest
import torch
from checkpoints import load, save, state
from command_line import SWAVG, done, swavg

import swavg as library
from swavg.engine.recipe import recipe_of

# Quick to start: no library reads the file.
EVALUATOR = """
import json, struct, sys, time
path = sys.argv[1]
with open("calls", "a") as log:
    print(path, file=log)
with open(path, "rb") as file:
    data = file.read()
size, = struct.unpack("<Q", data[:8])
start, end = json.loads(data[8:8 + size])["body.bias"]["data_offsets"]
values = struct.unpack(f"<{(end - start) // 4}f", data[8 + size + start : 8 + size + end])
score = sum(value * value for value in values)
print("evaluated", path)
print(json.dumps({"eval": {"loss": score}}) if "--json" in sys.argv else score)
"""
EVALUATE = f"{sys.executable} -S ev.py {{}}"
SOUP = ["soup", "run", "--evaluate", EVALUATE, "--mode", "min", "-o", "soup.safetensors"]
COUNT = 5


@pytest.fixture
def folder(tmp_path):
    for index in range(COUNT):
        save(tmp_path / "run" / f"step-{index}.safetensors", state(20 + index))
    (tmp_path / "ev.py").write_text(EVALUATOR)
    return tmp_path


def calls(folder):
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def expected(folder):
    """Those that the paper's algorithm keeps, in the order of their acceptance."""
    held = [load(folder / f"run/step-{i}.safetensors")["body.bias"].double() for i in range(COUNT)]

    def value(indices):
        return (sum(held[i] for i in indices) / len(indices)).square().sum().item()

    kept, *others = sorted(range(COUNT), key=lambda index: value([index]))
    soup = [kept]
    for index in others:
        if value([*soup, index]) <= value(soup):
            soup.append(index)
    return [f"step-{index}.safetensors" for index in soup]


def test_a_soup_by_a_command(folder):
    found = done(*SOUP, cwd=folder)
    assert found.stdout == "soup.safetensors\n"
    order = expected(folder)
    assert 2 < len(order) < COUNT
    recipe = recipe_of(folder / "soup.safetensors")
    assert (recipe["method"], recipe["mode"], recipe["order"]) == ("greedy soup", "min", order)
    assert recipe["inputs"] == sorted(order)
    done("average", *(f"run/{name}" for name in sorted(order)), "-o", "m.safetensors", cwd=folder)
    soup, mean = load(folder / "soup.safetensors"), load(folder / "m.safetensors")
    assert all(torch.equal(soup[name], mean[name]) for name in mean)
    rows = (folder / "soup.csv").read_text().splitlines()[1:]
    assert rows[0] == "tried,checkpoint,n,score,kept"
    assert len(rows) == 1 + COUNT + COUNT
    assert [row.split(",")[1] for row in rows if row.endswith("yes")] == order
    assert len(calls(folder)) == 2 * COUNT - 1
    assert calls(folder)[:COUNT] == [f"run/step-{index}.safetensors" for index in range(COUNT)]
    table = [line.split() for line in found.stderr.splitlines() if "step-" in line]
    assert [row[0] for row in table[:COUNT] if row[-1] == "kept"] == order
    assert sorted(os.listdir(folder)) == sorted(
        ["calls", "ev.py", "m.safetensors", "run", "soup.csv", "soup.safetensors"]
    )


def test_the_report_has_what_was_tried(folder):
    report = json.loads(done(*SOUP, "--json", cwd=folder).stdout)
    assert report["schema"].startswith("swavg.report/")
    assert report["csv"] == "soup.csv"
    assert [each["kept"] for each in report["tried"]].count(None) == COUNT
    kept = [each["name"] for each in report["tried"] if each["kept"]]
    assert kept == report["recipe"]["order"] == expected(folder)
    assert report["recipe"]["scores"] == [e["score"] for e in report["tried"] if e["kept"]]


def test_a_score_in_json_whose_name_says_what_is_best(folder):
    command = ["soup", "run", "--evaluate", f"{EVALUATE} --json", "--json-key", "eval.loss"]
    done(*command, "-o", "a.safetensors", cwd=folder)
    assert recipe_of(folder / "a.safetensors")["order"] == expected(folder)


def test_what_is_finished_is_evaluated_no_more(folder):
    done(*SOUP, cwd=folder)
    before = (folder / "soup.safetensors").stat().st_ino
    assert "up to date" in done(*SOUP, "--if-stale", cwd=folder).stderr
    assert swavg(*SOUP, cwd=folder).returncode == 7
    assert len(calls(folder)) == 2 * COUNT - 1
    assert (folder / "soup.safetensors").stat().st_ino == before
    # The score of another checkpoint is another.
    save(folder / "run" / "step-0.safetensors", state(99))
    assert "up to date" not in done(*SOUP, "--if-stale", cwd=folder).stderr
    assert len(calls(folder)) == 2 * (2 * COUNT - 1)
    assert recipe_of(folder / "soup.safetensors")["order"] == expected(folder)
    done(*SOUP, "--force", "--restart", cwd=folder)
    assert len(calls(folder)) == 3 * (2 * COUNT - 1)
    told = " ".join(done(*SOUP, "--force", cwd=folder).stderr.split())
    assert f"{2 * COUNT - 1} of {2 * COUNT - 1} evaluations are those of soup.csv" in told


def test_what_is_no_average_is_not_replaced_and_nothing_evaluated(folder):
    save(folder / "soup.safetensors", state(1))
    assert swavg(*SOUP, "--if-stale", cwd=folder).returncode == 7
    os.unlink(folder / "soup.safetensors")
    (folder / "soup.csv").write_text("mine\n")
    assert swavg(*SOUP, "--if-stale", cwd=folder).returncode == 7
    assert (folder / "soup.csv").read_text() == "mine\n"
    assert not calls(folder)


def test_a_plan_says_how_many_evaluations(folder):
    done(*SOUP, cwd=folder)
    found = done(*SOUP, "--dry-run", cwd=folder)
    assert f"{2 * COUNT - 1} evaluations" in found.stderr
    assert "all are in soup.csv" in found.stderr
    assert "exists already" in found.stderr
    assert "step-3.safetensors" in found.stdout
    report = json.loads(done(*SOUP, "-n", "--json", cwd=folder).stdout)
    assert report["recipe"]["method"] == "greedy soup"
    assert len(calls(folder)) == 2 * COUNT - 1


def test_a_call_that_was_written_down_runs(folder):
    done(*SOUP, "--save-job", "soup.toml", cwd=folder)
    first = (folder / "soup.safetensors").read_bytes()
    os.unlink(folder / "soup.safetensors")
    done("run", "soup.toml", cwd=folder)
    assert (folder / "soup.safetensors").read_bytes() == first


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--evaluate", "true {}", "--mode", "min", "-o", "-"], "-o takes a path"),
        (["--evaluate", "true {}"], "--mode min"),
        (["--evaluate", "true {}", "--json-key", "eval.x"], "--mode min"),
        (["--evaluate", "true", "--mode", "min"], "Put {} there"),
        ([], "--evaluate 'CMD {}', or --model and --data"),
        (["--model", "m:n"], "--model and --data"),
        (["--model", "m:n", "--data", "m:n", "--json-key", "a"], "--json-key says"),
        (["--evaluate", "true {}", "--mode", "min", "--model", "m:n"], "--model has no use"),
        (["--evaluate", "true {}", "--mode", "min", "--metric", "error"], "--metric has no use"),
        (["--evaluate", "true {}", "--mode", "min", "--part", "1/2"], "No such option"),
        (["--evaluate", "true {}", "--mode", "min", "--engine", "ray"], "No such option"),
    ],
)
def test_what_does_not_go_together_is_a_usage_error(folder, more, said):
    found = swavg("soup", "run", *more, cwd=folder)
    assert found.returncode == 2
    assert said in found.stderr
    assert sorted(os.listdir(folder)) == ["ev.py", "run"]


def test_a_command_that_fails_is_named_and_the_same_call_goes_on(folder):
    source = (folder / "ev.py").read_text()
    (folder / "ev.py").write_text(source + "assert 'soup-3' not in path\n")
    found = swavg(*SOUP, cwd=folder)
    assert found.returncode == 2
    assert "ended with exit code 1. It printed:" in found.stderr
    assert "the same call goes on" in found.stderr
    assert (folder / "soup.csv.partial").exists()
    assert not [name for name in os.listdir(folder) if name.startswith(".")]
    (folder / "ev.py").write_text(source)
    done(*SOUP, cwd=folder)
    # Only the one that failed was called twice.
    assert len(calls(folder)) == 2 * COUNT


def test_averaged_statistics_are_told_before_a_command_is_called(folder):
    for index in range(2):
        more = {"norm.running_mean": torch.ones(2), "norm.running_var": torch.ones(2)}
        save(folder / "norm" / f"step-{index}.safetensors", state(index, **more))
    found = done("soup", "norm", *SOUP[2:], cwd=folder)
    assert "candidates hold averaged batch-norm statistics" in found.stderr


def waiting(folder, number, *more):
    """A process of swavg whose command does not end at its call of this number."""
    script = folder / "ev.py"
    wait = f"if len(open('calls').readlines()) == {number}: time.sleep(600)\n"
    script.write_text(EVALUATOR + wait)
    command, pipe = [*SWAVG, *SOUP, *more], subprocess.PIPE
    running = subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True)
    while len(calls(folder)) < number:
        assert running.poll() is None
        time.sleep(0.02)
    script.write_text(EVALUATOR)
    return running


def evaluators(folder):
    """The processes of commands that run in a folder."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{name}/cwd") == str(folder):
                words = Path(f"/proc/{name}/cmdline").read_text().split("\0")
                found += [int(name)] * ("ev.py" in words)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, COUNT + 2])
def test_a_killed_soup_goes_on_where_it_was(folder, number):
    running = waiting(folder, number)
    running.kill()
    running.wait()
    running.stdout.close()
    running.stderr.close()
    for pid in evaluators(folder):
        os.kill(pid, signal.SIGKILL)
    found = done(*SOUP, cwd=folder)
    assert "kept" in found.stderr
    # The one that was running is evaluated once more.
    assert len(calls(folder)) == 2 * COUNT
    assert recipe_of(folder / "soup.safetensors")["order"] == expected(folder)
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_and_says_what_is_kept(folder, number, code):
    running = waiting(folder, COUNT + 2, "--json")
    assert evaluators(folder)
    running.send_signal(number)
    out, said = running.communicate(timeout=30)
    assert running.returncode == code
    kept = f"{COUNT + 1} of {2 * COUNT - 1} evaluations are in soup.csv.partial"
    assert kept in said
    error = json.loads(out)
    assert (error["code"], error["kind"]) == (code, "interrupted")
    assert error["message"].endswith(kept)
    # It was killed; the system may take its time.
    deadline = time.monotonic() + 20
    while evaluators(folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert sorted(os.listdir(folder)) == ["calls", "ev.py", "run", "soup.csv.partial"]
    done(*SOUP, cwd=folder)
    assert len(calls(folder)) == 2 * COUNT


@pytest.fixture
def bowl(tmp_path, monkeypatch):
    """Checkpoints whose loss is known, and the model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bowl.py").write_text(landscape_models.SCRIPT)
    centre = torch.tensor([0.5, -1.0, 2.0, 0.25])
    generator = torch.Generator().manual_seed(3)
    for index in range(5):
        weights = centre + torch.randn(4, generator=generator)
        tensors = {"first": weights[:3], "last": weights[3:], "scale": torch.ones(())}
        save(tmp_path / "run" / f"step-{index}.safetensors", tensors)
    yield tmp_path
    sys.modules.pop("bowl", None)


BOWL = ["--model", "bowl.py:Bowl", "--data", "bowl.py:data", "--loss", "bowl.py:distance"]


def test_a_soup_by_the_loss_of_a_model(bowl):
    done("soup", "run", *BOWL, "-o", "soup.safetensors")
    held = [load(bowl / f"run/step-{index}.safetensors") for index in range(5)]
    points = [torch.cat([each["first"], each["last"]]).double() for each in held]
    centre = torch.tensor([0.5, -1.0, 2.0, 0.25])

    def value(indices):
        return (sum(points[i] for i in indices) / len(indices) - centre).square().sum().item()

    soup = []
    for index in sorted(range(5), key=lambda index: value([index])):
        if not soup or value([*soup, index]) <= value(soup):
            soup.append(index)
    recipe = recipe_of("soup.safetensors")
    assert recipe["order"] == [f"step-{index}.safetensors" for index in soup]
    assert recipe["scores"][-1] == pytest.approx(value(soup))
    assert len(soup) > 1
    library.average([f"run/{name}" for name in recipe["inputs"]], output="mean.safetensors")
    assert torch.equal(load("soup.safetensors")["first"], load("mean.safetensors")["first"])


def test_a_soup_by_a_function_of_the_users_of_which_the_highest_is_best(bowl):
    with open("bowl.py", "a") as script:
        script.write("\ndef closeness(outputs, target):\n    return -distance(outputs, target)\n")
    done("soup", "run", *BOWL, "-o", "loss.safetensors")
    function = ["--metric", "bowl.py:closeness", "--mode", "max"]
    done("soup", "run", *BOWL, *function, "-o", "function.safetensors")
    by_loss, by_function = (recipe_of(f"{name}.safetensors") for name in ("loss", "function"))
    assert by_loss["order"] == by_function["order"]
    assert by_function["scores"] == pytest.approx([-score for score in by_loss["scores"]])
    # There are no classes.
    found = swavg("soup", "run", *BOWL, "--metric", "error", "-o", "error.safetensors")
    assert found.returncode == 2
    assert "no error rate" in found.stderr
