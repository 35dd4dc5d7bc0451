"""Calls that are written down, and run again."""

import json
import os
import shutil

import pytest
from command_line import done, swavg
from json_documents import document
from run_of_five import STEPS, assert_bias, bias

CALLS = {
    "average": ["average", "run", "--last", 3, "--weights", "1", "2", "1", "--normalize",
                "--lenient", "--missing", "average", "--dtype", "float64", "--no-geometry",
                "-o", "out.safetensors", "--exclude", "body.*", "--exclude", "steps"],
    "ema": ["ema", "run", "--half-life", "30steps", "--debias", "-o", "out.safetensors"],
    "sweep": ["sweep", "run", "-r", "uniform:last=2", "-r", "ema:decay=0.5", "-d", "out"],
    "shards": ["average", "run/", "--max-shard-size", "1kB", "-o", "out"],
    "convert": ["convert", "one.safetensors", "out.pt", "--dtype", "float16"],
}  # fmt: skip


def content(path):
    if path.is_file():
        return path.read_bytes()
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


@pytest.mark.parametrize("args", CALLS.values(), ids=CALLS)
def test_a_call_that_was_saved_makes_the_same_bytes(run, args):
    done("average", "run", "--last", 1, "-o", "one.safetensors", cwd=run)
    out = next(each for each in map(str, args) if each.startswith("out"))
    os.mkdir(run / "jobs")
    first = done(*args, "--save-job", "jobs/job.toml", cwd=run)
    text = (run / "jobs" / "job.toml").read_text()
    assert f'"../{out}"' in text
    expected = content(run / out)
    (run / out).rename(run / "before")
    # Paths are relative to the file, whatever the current folder.
    again = done("run", run / "jobs" / "job.toml", cwd="/")
    assert content(run / out) == expected
    assert len(again.stdout.splitlines()) == len(first.stdout.splitlines())
    assert swavg(*args, "--save-job", "jobs/job.toml", "--force", cwd=run).returncode == 2


def test_options_behind_a_job_are_added(run):
    done("average", "run", "-o", "out.safetensors", "-n", "--save-job", "job.toml", cwd=run)
    assert not (run / "out.safetensors").exists()
    found = json.loads(done("run", "job.toml", "--last", "2", "--json", cwd=run).stdout)
    assert len(found["inputs"]) == 2
    # What was only shown is done by its job.
    assert (run / "out.safetensors").exists()


def test_a_job_by_hand_with_variables(run):
    (run / "job.toml").write_text(
        'command = "average"\ncheckpoints = ["${RUN}"]\nlast = 2\noutput = "a.safetensors"\n'
        "# the oldest counts twice\nweights = [2, 1]\nnormalize = true\nstrict = true\n"
    )
    done("run", "job.toml", cwd=run, env={"RUN": "run"})
    assert_bias(run / "a.safetensors", bias(STEPS[-2:], (2 / 3, 1 / 3)))
    found = swavg("run", "job.toml", "--force", cwd=run)
    assert found.returncode == 2
    assert "the variable RUN is not set" in found.stderr


def test_errors_of_a_job_name_the_options_of_its_command(run):
    done("average", "run", "-o", "out.safetensors", "--save-job", "job.toml", cwd=run)
    found = swavg("run", "job.toml", cwd=run)
    assert found.returncode == 7
    assert "Use --force to replace it." in found.stderr
    done("run", "job.toml", "--force", cwd=run)


def test_errors_of_a_job_are_json_if_it_says_so(run):
    done("average", "run", "-o", "out.safetensors", "--json", "--save-job", "job.toml", cwd=run)
    found = swavg("run", "job.toml", cwd=run)
    assert (found.returncode, document(found.stdout)["kind"]) == (7, "exists")


def test_a_report_is_a_job(run):
    text = done(
        "ema", "run", "--decay", "0.5", "--dtype", "float64", "-o", "a.st", "--json", cwd=run
    )
    (run / "report.json").write_text(text.stdout)
    (run / "a.st").rename(run / "before.st")
    done("run", "report.json", cwd=run)
    assert done("diff", "before.st", "a.st", cwd=run).returncode == 0


def test_a_report_of_an_earlier_version_is_a_job(run):
    paths = [next((run / "run").glob(f"step_{step}-*")) for step in (40, 100)]
    report = {
        "schema": "swavg.report/1",
        "output": "a.safetensors",
        "inputs": [
            {"name": path.name, "path": str(path), "weight": weight, "distance": None}
            for path, weight in zip(paths, (0.25, 0.75), strict=True)
        ],
        "treated": [],
        "recipe": {"method": "weighted", "options": {"dtype": "float64"}, "version": "0.1.0"},
    }
    (run / "report.json").write_text(json.dumps(report))
    done("run", "report.json", cwd=run)
    assert_bias(run / "a.safetensors", bias((40, 100), (0.25, 0.75)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('command = "average"\ncheckpoint = "run"', "Did you mean 'checkpoints'?"),
        ('command = "averag"', "Did you mean 'average'?"),
        ('checkpoints = ["run"]', "says no command"),
        ("command = ", "is no job"),
        ('command = "run"\njob = "job.toml"', "there is no command 'run'"),
        ('command = "average"\ncheckpoints = ["run"]\nlast = [1, 2]', "one value"),
        ('command = "average"\ncheckpoints = ["run"]\nforce = "yes"', "true or false"),
        ('command = "average"\ncheckpoints = ["run"]\nlast = {a = 1}', "no list of texts"),
        ('command = "average"\ncheckpoints = ["run"]\nlast = "x"', "--last"),
        ('command = "average"\ncheckpoints = ["a\\u0000b"]', "NUL character"),
        ("a = " + "[" * 50_000, "is no job"),
        ('{"command": ' + "[" * 200_000, "is no job"),
        ('{"schema": "swavg.report/1"}', "is no report"),
        ('{"schema": "swavg.report/1", "inputs": null, "recipe": {}, "output": "o"}', "no report"),
        ('{"schema": "swavg.report/1", "inputs": [1], "recipe": {}, "output": "o"}', "no report"),
        ('{"schema": "swavg.report/1", "inputs": [], "recipe": [], "output": "o"}', "no report"),
        (
            '{"schema": "swavg.report/1", "inputs": [], "recipe": {"options": {"x": 1}}}',
            "no report",
        ),
    ],
    ids=lambda text: text[:40],
)
def test_what_is_no_job(run, text, said):
    (run / "job.toml").write_text(text)
    found = swavg("run", "job.toml", cwd=run)
    assert (found.returncode, said in found.stderr) == (2, True), found.stderr


def test_a_name_of_odd_characters(run):
    name = 'a "b" \x7f\t$c {d} é.safetensors'
    shutil.copy(next((run / "run").iterdir()), run / name)
    done("average", name, "-o", "out.safetensors", "--save-job", "job.toml", cwd=run)
    before = (run / "out.safetensors").read_bytes()
    done("run", "job.toml", "--force", cwd=run)
    assert (run / "out.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "said"), [("a${HOME}", "${HOME} would be a variable"), ("a\udcff", "is UTF-8")]
)
def test_what_a_job_cannot_name_is_not_saved(run, name, said):
    shutil.copy(next((run / "run").iterdir()), run / name)
    found = swavg("average", name, "-o", "out.safetensors", "--save-job", "job.toml", cwd=run)
    assert (found.returncode, said in found.stderr) == (2, True), found.stderr
    assert not (run / "job.toml").exists()
    assert not (run / "out.safetensors").exists()


def test_standard_input_cannot_be_saved(run):
    found = swavg("average", "-", "-n", "--save-job", "job.toml", cwd=run, stdin="run\n")
    assert found.returncode == 2
    assert not (run / "job.toml").exists()


def test_a_file_of_factors_is_that_beside_the_job_and_a_name_is_a_name(run):
    (run / "jobs").mkdir()
    (run / "factors").write_text("1\n0.5\n0.5\n0\n")
    args = ["average", "run", "-o", "a.safetensors", "-n", "--save-job"]
    done(*args, "jobs/a.toml", "--anneal", "factors", cwd=run)
    assert 'anneal = "../factors"' in (run / "jobs" / "a.toml").read_text()
    done(*args, "jobs/b.toml", "--anneal", "cosine", cwd=run)
    assert 'anneal = "cosine"' in (run / "jobs" / "b.toml").read_text()
    for name in ("a", "b"):
        done("run", run / "jobs" / f"{name}.toml", "--force", cwd="/")


def test_a_call_that_is_refused_is_not_written_down(run):
    args = ["average", "run", "--last", "9", "-o", "a.safetensors", "--save-job", "job.toml"]
    assert swavg(*args, cwd=run).returncode == 2
    assert not (run / "job.toml").exists()
