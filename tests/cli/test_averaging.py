"""What the commands that write averages share."""

import json
import os

import pytest
import torch
from checkpoints import save
from command_line import done, swavg


@pytest.mark.parametrize(
    "args",
    [
        ["ema", "run", "--half-life", "30steps"],
        ["average", "run"],
        ["sweep", "run", "-r", "uniform:last=2", "-d", "out"],
        ["posthoc", "run", "--profile", "0.1", "--sigma-rel", "0.15"],
    ],
)
def test_a_dry_run_draws_the_weights_and_writes_nothing(run, args):
    finished = done(*args, "--dry-run", cwd=run)
    assert "█" in finished.stdout
    assert "equal checkpoints" in finished.stdout
    assert "newest" in finished.stdout
    assert sorted(path.name for path in run.iterdir()) == ["run"]
    as_json = json.loads(done(*args, "--dry-run", "--json", cwd=run).stdout)
    assert as_json["seconds"] is None
    assert len(as_json["inputs"]) >= 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["ema", "run"], "Give one of --decay, --half-life and --span"),
        (["ema", "run", "--decay", "1.5"], "1.5"),
        (["update", "x"], "Give the new checkpoints"),
        (["sweep", "run", "-r", "uniform"], "-d OUTDIR"),
        (["sweep", "run", "-r", "uniform", "-r", "uniform", "-d", "o"], "Two outputs"),
        (["posthoc", "run", "--sigma-rel", "0.1", "--sigma-rel", "0.2"], "-d OUTDIR"),
        (["posthoc", "run", "--sigma-rel", "0.5", "--profile", "0.1"], "0.5"),
    ],
)
def test_wrong_calls_are_usage_errors(run, args, said):
    finished = swavg(*args, cwd=run)
    assert finished.returncode == 2
    assert said in " ".join(finished.stderr.split())
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("file/out", "Not a directory"),
        ("file", "'file' is no folder"),
        ("closed/out", "the folder 'closed' is not writable"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_dry_run_into_a_folder_that_cannot_be_made_fails_as_the_run_would(run, folder, reason):
    (run / "file").write_text("")
    (run / "closed").mkdir(mode=0o500)
    if os.geteuid() == 0 and folder.startswith("closed"):
        pytest.skip("root may write anywhere")
    args = ["sweep", "run", "-r", "uniform:last=2", "-d", folder]
    for more in ([], ["-n"]):
        finished = swavg(*args, *more, cwd=run)
        assert finished.returncode == 5
        assert f"{folder}: cannot be made: {reason}" in finished.stderr


def test_a_dry_run_makes_no_folder(run):
    done("sweep", "run", "-r", "uniform:last=2", "-d", "deep/er", "-n", cwd=run)
    assert not (run / "deep").exists()


def averaging_commands(path, average):
    """A call of each command that writes one average, without -o."""
    yield "average", [path(10), path(20)]
    yield "ema", ["run", "--decay", "0.9"]
    yield "ema", ["run", "--schedule", "bema"]
    yield "update", [average, path(40)]
    yield "window", [average, path(40), "--counts", "3", "4"]
    yield "posthoc", ["run", "--profile", "0.1", "--sigma-rel", "0.15"]


def test_an_output_is_named_after_its_command_as_the_help_says(run):
    done("average", "run", "--to-step", "30", "-o", "avg.safetensors", cwd=run)
    calls = averaging_commands(
        lambda step: next((run / "run").glob(f"step_{step}-*")), "avg.safetensors"
    )
    names = []
    for command, args in calls:
        made = done(command, *args, cwd=run).stdout.strip()
        stem = made.removesuffix(".safetensors")
        assert f"[default: {stem}.SUFFIX]" in done(command, "-h").stdout
        (run / made).rename(run / f"{command}-{len(names)}.safetensors")
        names.append(stem)
    assert names == ["averaged", "ema", "ema", "updated", "window", "posthoc"]
    (run / "out").mkdir()
    made = done("ema", "run", "--decay", "0.9", "-o", "out", cwd=run)
    assert made.stdout == "out/ema.safetensors\n"


def test_a_dry_run_of_a_part_says_what_the_part_does(tmp_path):
    paths = [save(tmp_path / f"{i}.safetensors", {"w": torch.ones(1 << 20)}) for i in range(2)]
    call = ["average", *paths, "-o", "out.safetensors", "-n"]
    told = "part 2/3 makes 2 of 5 tasks: it reads about 3.36 MB of 8.39 MB, and writes about"
    told += " 1.68 MB of 4.19 MB"
    found = done(*call, "--part", "2/3", cwd=tmp_path)
    assert f"note {told}\n" in found.stderr
    as_json = json.loads(done(*call, "--part", "2/3", "--json", cwd=tmp_path).stdout)
    assert told in as_json["notes"]
    assert "part" not in done(*call, cwd=tmp_path).stderr
    assert "such as 3/8, not '4/3'" in swavg(*call, "--part", "4/3", cwd=tmp_path).stderr
    both = swavg(*call, "--part", "1/3", "--finish", cwd=tmp_path)
    assert "--part and --finish exclude each other" in both.stderr
