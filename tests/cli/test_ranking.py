"""``swavg sweep`` with a model and data: its outputs are evaluated, and the best is told."""

import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import load
from command_line import done, swavg
from torch import nn

SCRIPT = """
import torch
from torch import nn

X = torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (24,), generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(5, 7)
        self.head = nn.Linear(7, 3, bias=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        return self.head(torch.relu(self.body(x)))


def val():
    return [(X[:16], Y[:16]), (X[16:], Y[16:])]


def accuracy(outputs, target):
    return outputs.argmax(1) == target


stopped = []


def stops(outputs, target):
    stopped.append(1)
    if len(stopped) == 3:
        raise KeyboardInterrupt
    return nn.functional.cross_entropy(outputs, target)
"""
NAMES = ["uniform-last-2", "ema-decay-0.5", "uniform"]
OUTPUTS = [f"out/{name}.safetensors" for name in NAMES]
SWEEP = ["sweep", "run", "-r", "uniform:last=2", "-r", "ema:decay=0.5", "-r", "uniform",
         "-d", "out"]  # fmt: skip
NET = ["--model", "net.py:Net", "--data", "net.py:val"]


@pytest.fixture
def scope(run, monkeypatch):
    """What the script holds; the run's folder is the current one."""
    monkeypatch.chdir(run)
    Path("net.py").write_text(SCRIPT)
    found = {}
    exec(SCRIPT, found)
    yield found
    sys.modules.pop("net", None)


def plain_loss(scope, path):
    net = scope["Net"]()
    net.load_state_dict(load(path))
    with torch.no_grad():
        return nn.functional.cross_entropy(net(scope["X"]), scope["Y"]).item()


def test_the_outputs_are_evaluated_and_the_best_is_told(scope):
    found = done(*SWEEP, *NET)
    assert found.stdout.split() == OUTPUTS
    losses = {path: plain_loss(scope, path) for path in OUTPUTS}
    best = min(losses, key=losses.get)
    assert f"best: {best}, loss {losses[best]:.4f}" in found.stderr
    csv = Path("out/evaluation.csv").read_text().splitlines()[2:]
    assert [line.split(",")[0] for line in csv] == OUTPUTS
    assert [float(line.split(",")[1]) for line in csv] == pytest.approx([*losses.values()])


def test_each_report_has_what_was_found_of_its_output(scope):
    more = ["--eval-metric", "net.py:accuracy", "--json"]
    reports = json.loads(done(*SWEEP, *NET, *more).stdout)
    assert [report["output"] for report in reports] == OUTPUTS
    found = [report["evaluation"] for report in reports]
    for path, each in zip(OUTPUTS, found, strict=True):
        assert each["loss"] == pytest.approx(plain_loss(scope, path), rel=1e-6)
        assert each["metric"] == pytest.approx(1 - each["error"])
        assert each["examples"] == 24
    highest = max(each["metric"] for each in found)
    assert [each["metric"] for each in found if each["best"]] == [highest]


def test_without_a_model_nothing_is_evaluated(scope):
    (report, *_) = json.loads(done(*SWEEP, "--json").stdout)
    assert "evaluation" not in report
    assert not Path("out/evaluation.csv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (NET[:2], "give both --model and --data"),
        (["--eval-metric", "error"], "give both --model and --data"),
        (["--keep-bn"], "give both --model and --data"),
        ([*NET, "--keep-bn", "--bn-data", "net.py:val"], "--bn-data has no use"),
        ([*NET, "--part", "1/2"], "--part publishes nothing"),
    ],
)
def test_what_has_no_use_is_refused_before_anything_is_averaged(scope, options, message):
    found = swavg(*SWEEP, *options)
    assert found.returncode == 2
    assert message in found.stderr
    assert not Path("out").exists()


def test_a_csv_that_is_there_is_refused_before_anything_is_averaged(scope):
    Path("out").mkdir()
    Path("out/evaluation.csv").write_text("mine")
    assert swavg(*SWEEP, *NET).returncode == 7
    # It is no csv of an evaluation, which alone is replaced where something is stale.
    assert swavg(*SWEEP, *NET, "--if-stale").returncode == 7
    assert [path.name for path in Path("out").iterdir()] == ["evaluation.csv"]
    done(*SWEEP, *NET, "--force")
    assert Path("out/evaluation.csv").read_text().startswith("# swavg {")
    again = swavg(*SWEEP, *NET)
    assert again.returncode == 7
    assert "Use --if-stale to go on with what is there, or --force to" in again.stderr
    assert "up to date" in done(*SWEEP, *NET, "--if-stale").stderr


def test_averages_stay_where_evaluating_fails_and_the_same_command_goes_on(scope):
    wrong = [*SWEEP, *NET[:-1], "net.py:nothing"]
    found = swavg(*wrong)
    assert found.returncode == 2
    assert found.stdout.split() == OUTPUTS
    assert "has no 'nothing'" in found.stderr
    assert "the averages are written; the same command with --if-stale evaluates" in found.stderr
    before = {path: Path(path).stat().st_mtime_ns for path in OUTPUTS}
    again = done(*SWEEP, *NET, "--if-stale")
    assert "best: out/" in again.stderr
    assert {path: Path(path).stat().st_mtime_ns for path in OUTPUTS} == before


def test_an_interrupted_evaluation_goes_on(scope):
    stops = [*NET, "--loss", "net.py:stops"]
    found = swavg(*SWEEP, *stops)
    assert found.returncode == 130
    assert "1 of 3 checkpoints are in out/evaluation.csv.partial" in found.stderr
    assert "the same command with --if-stale evaluates them" in found.stderr
    again = done(*SWEEP, *stops, "--if-stale")
    losses = {path: plain_loss(scope, path) for path in OUTPUTS}
    assert f"best: {min(losses, key=losses.get)}" in again.stderr


def test_the_names_that_options_chose_and_changed_fit_the_model(scope):
    for path in Path("run").iterdir():
        torch.save({"raw": {}, "ema": {f"m.{k}": v for k, v in load(path).items()}},
                   path.with_suffix(".pt"))  # fmt: skip
        path.unlink()
    more = ["--key", "ema", "--strip-prefix", "m.", "--json"]
    for way in ([], ["--weights-only"], ["--format", "safetensors"]):
        found = done(*SWEEP, *NET, *more, *way, "--force")
        losses = [report["evaluation"]["loss"] for report in json.loads(found.stdout)]
        done(*SWEEP[:-1], "plain", *more[:-1], "--format", "safetensors", "--force")
        expected = [plain_loss(scope, path.replace("out", "plain")) for path in OUTPUTS]
        assert losses == pytest.approx(expected, rel=1e-6)


NORMED = """

class Normed(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(7)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.body(x))))
"""


def test_the_command_that_is_shown_writes_the_statistics_that_were_used(scope):
    Path("net.py").write_text(SCRIPT + NORMED)
    exec(NORMED, scope)
    for path in Path("run").iterdir():
        torch.save({f"m.{k}": v for k, v in
                    {**scope["Normed"]().state_dict(), **load(path)}.items()},
                   path.with_suffix(".pt"))  # fmt: skip
        path.unlink()
    model = ["--model", "net.py:Normed", "--data", "net.py:val", "--strip-prefix", "m."]
    found = done("eval", "run", *model, "--batches", "1", "--json")
    (line,) = (part for part in found.stderr.splitlines() if "in a file: swavg bn" in part)
    done(*shlex.split(line.partition("swavg ")[2]), "-o", "best.pt")
    kept = done("eval", "best.pt", *model, "--batches", "1", "--keep-bn", "--json", "--force")
    report, again = json.loads(found.stdout), json.loads(kept.stdout)
    assert (report["batch_norm"], again["batch_norm"]) == ("net.py:val", None)
    best = report["checkpoints"][0]["loss"]
    assert again["checkpoints"][0]["loss"] == pytest.approx(best, rel=1e-6)
    # So for a soup.
    found = done("soup", "run", *model, "-o", "soup.pt")
    (line,) = (part for part in found.stderr.splitlines() if "in a file: swavg bn" in part)
    assert "statistics recomputed on net.py:val;" in line
    done(*shlex.split(line.partition("swavg ")[2]))
    assert Path("soup-bn.pt").exists()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_outputs_in_a_store_are_evaluated_and_the_csv_lies_here(scope, bucket):
    remote = bucket.url("averages")
    found = done(*SWEEP[:-1], remote, *NET)
    assert [path.rpartition("/")[0] for path in found.stdout.split()] == [remote] * 3
    csv = Path("evaluation.csv").read_text().splitlines()[2:]
    done(*SWEEP)
    losses = [plain_loss(scope, path) for path in OUTPUTS]
    assert [float(line.split(",")[1]) for line in csv] == pytest.approx(losses)
