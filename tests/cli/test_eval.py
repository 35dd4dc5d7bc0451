"""``swavg eval``: which of several checkpoints and averages is best."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpoints import save
from command_line import done, swavg
from landscape_models import CORNERS, MODEL, bowl, bowls, weights
from terminal import on_a_terminal
from torch import nn

__all__ = ["bowls"]

PATHS = ["a.safetensors", "b.safetensors", "c.safetensors"]
EVAL = ["eval", *PATHS, *MODEL]
LOSSES = {f"{name}.safetensors": bowl(values) for name, values in CORNERS.items()}

CLASSES = """
import torch
from torch import nn

torch.manual_seed(3)
X, Y = torch.randn(60, 4) + 1, torch.randint(3, (60,))


def net():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def train():
    return [(X[:20], Y[:20]), (X[20:40], Y[20:40])]


def test():
    return [(X[40:52], Y[40:52]), (X[52:], Y[52:])]


def accuracy(outputs, target):
    return outputs.argmax(1) == target


def hits(outputs, target):
    return outputs.argmax(1) == target
"""


@pytest.fixture
def classes(tmp_path, monkeypatch):
    """A folder with a run of three checkpoints, their mean, and what says model and data."""
    (tmp_path / "classes.py").write_text(CLASSES)
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(CLASSES, scope)
    states = {}
    for step in (1, 2, 3):
        torch.manual_seed(step)
        net = scope["net"]()
        nn.init.normal_(net[1].running_mean)
        states[f"run/step-{step}.safetensors"] = net.state_dict()
        save(tmp_path / f"run/step-{step}.safetensors", net.state_dict())
    done("average", "run", "-o", "mean.safetensors", "-q")
    values = [*states.values()]
    states["mean.safetensors"] = {
        name: (sum(state[name].double() for state in values) / 3).to(values[0][name].dtype)
        for name in values[0]
    }
    yield scope, states
    sys.modules.pop("classes", None)


NET = ["--model", "classes.py:net", "--data", "classes.py:test"]


def plain_loop(scope, state, bn_data=None):
    """The loss and error rate as torch has them."""
    net = scope["net"]()
    net.load_state_dict(state)
    if bn_data is not None:
        torch.optim.swa_utils.update_bn(bn_data, net)
    net.eval()
    with torch.no_grad():
        logits, target = net(scope["X"][40:]), scope["Y"][40:]
    loss = nn.functional.cross_entropy(logits, target).item()
    return loss, (logits.argmax(1) != target).double().mean().item()


def rows(path="evaluation.csv"):
    with open(path) as file:
        assert file.readline().startswith("# swavg {")
        return list(csv.DictReader(file))


@pytest.mark.parametrize("how", ["data", "bn-data", "keep"])
def test_each_value_is_that_of_a_plain_loop(classes, how):
    scope, states = classes
    more = {"data": [], "bn-data": ["--bn-data", "classes.py:train"], "keep": ["--keep-bn"]}[how]
    bn_data = {"data": scope["test"](), "bn-data": scope["train"](), "keep": None}[how]
    found = done("eval", "run", "mean.safetensors", *NET, *more, "--json")
    told = "recomputed for each evaluation on --data" in " ".join(found.stderr.split())
    assert told == (how == "data")
    report = json.loads(found.stdout)
    expected = {path: plain_loop(scope, state, bn_data) for path, state in states.items()}
    assert {entry["path"] for entry in report["checkpoints"]} == {*expected}
    for entry in report["checkpoints"]:
        loss, error = expected[entry["path"]]
        assert entry["loss"] == pytest.approx(loss, rel=1e-5)
        assert entry["error"] == pytest.approx(error)
        assert entry["examples"] == 20
    best_first = sorted(expected, key=lambda path: expected[path][0])
    assert [entry["path"] for entry in report["checkpoints"]] == best_first
    assert report["best"] == best_first[0]
    assert (report["metric"], report["mode"]) == ("loss", "min")


def test_the_table_has_the_best_first_and_the_csv_the_order_given(bowls):
    found = done(*EVAL)
    assert found.stdout == "evaluation.csv\n"
    assert [(row["checkpoint"], float(row["loss"])) for row in rows()] == [*LOSSES.items()]
    shown = re.findall(r"^ (\w\.safetensors) +(\S+)", found.stderr, re.MULTILINE)
    assert [name for name, _ in shown] == sorted(LOSSES, key=LOSSES.get)
    assert "best: b.safetensors, loss 4.3125" in found.stderr
    assert "error" not in found.stderr


def test_the_error_rate_and_a_function_of_ones_own_decide_where_asked_for(classes):
    scope, states = classes
    errors = {path: plain_loop(scope, state, scope["test"]())[1] for path, state in states.items()}
    lowest = min(errors, key=errors.get)
    by_error = done("eval", *states, *NET, "--metric", "error", "--json")
    own = ["--metric", "classes.py:accuracy", "--csv", "own.csv"]
    by_accuracy = done("eval", *states, *NET, *own, "--json")
    for found in (by_error, by_accuracy):
        assert json.loads(found.stdout)["best"] == lowest
    report = json.loads(by_accuracy.stdout)
    assert (report["metric"], report["mode"]) == ("accuracy", "max")
    for entry in report["checkpoints"]:
        assert entry["metric"] == pytest.approx(1 - errors[entry["path"]])
    assert [*rows("own.csv")[0]] == ["checkpoint", "loss", "error", "metric", "examples"]


def test_of_a_function_whose_name_says_nothing_the_mode_is_asked_for(classes):
    refused = swavg("eval", "run", *NET, "--metric", "classes.py:hits")
    assert refused.returncode == 2
    assert "Say so with --mode max or --mode min" in refused.stderr
    found = done("eval", "run", *NET, "--metric", "classes.py:hits", "--mode", "max", "--json")
    values = [entry["metric"] for entry in json.loads(found.stdout)["checkpoints"]]
    assert values == sorted(values, reverse=True)


def test_what_is_nan_is_last_whatever_decides(classes):
    scope, states = classes
    broken = dict(states["run/step-1.safetensors"])
    broken["2.weight"] = torch.full_like(broken["2.weight"], torch.nan)
    save("broken.safetensors", broken)
    # All of its outputs are NaN, which argmax takes for the first class.
    scope["Y"].zero_()
    with open("classes.py", "a") as file:
        file.write("Y.zero_()\n")
    paths = ["broken.safetensors", *states]
    for more in ([], ["--metric", "error"], ["--metric", "classes.py:accuracy"]):
        found = done("eval", *paths, *NET, *more, "--json", "--force")
        report = json.loads(found.stdout)
        assert report["checkpoints"][-1]["path"] == "broken.safetensors"
        assert report["checkpoints"][-1]["loss"] is None
        assert report["best"] != "broken.safetensors"
        assert "last, for their values are NaN or infinite: broken.safetensors" in found.stderr
    alone = done("eval", "broken.safetensors", *NET, "--json", "--force")
    assert json.loads(alone.stdout)["best"] is None
    assert "best: none" in alone.stderr


def test_there_is_no_error_rate_without_classes(bowls):
    found = swavg(*EVAL, "--metric", "error")
    assert found.returncode == 2
    assert "no error rate" in found.stderr
    done(*EVAL)
    # What is in the csv lacks it as well.
    assert "no error rate" in swavg(*EVAL, "--metric", "error").stderr


def test_a_run_that_was_killed_goes_on_and_gives_the_same_bytes(bowls):
    args = [arg.replace(":distance", ":slow") for arg in EVAL]
    slow = (bowls / "bowl.py").read_text().replace("sleep(0.02)", "sleep(0.3)")
    (bowls / "bowl.py").write_text(slow)
    partial = bowls / "evaluation.csv.partial"
    running = subprocess.Popen([sys.executable, "-m", "swavg", *args, "-q"], cwd=bowls)
    until = time.monotonic() + 60
    while not partial.exists() or partial.read_bytes().count(b"\n") < 3:
        assert running.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = partial.read_bytes()
    assert not (bowls / "evaluation.csv").exists()
    done(*args)
    assert (bowls / "evaluation.csv").read_bytes().startswith(before)
    assert [float(row["loss"]) for row in rows()] == [*LOSSES.values()]
    assert not partial.exists()


def test_an_interrupted_run_says_how_it_goes_on(bowls):
    script = (bowls / "bowl.py").read_text()
    (bowls / "bowl.py").write_text(
        script + "\n\ncalls = []\n\n\ndef stops(outputs, target):\n    calls.append(1)\n"
        "    if len(calls) == 3:\n        raise KeyboardInterrupt\n"
        "    return distance(outputs, target)\n"
    )
    args = [arg.replace(":distance", ":stops") for arg in EVAL]
    found = swavg(*args)
    assert found.returncode == 130
    assert "1 of 3 checkpoints are in evaluation.csv.partial" in found.stderr
    assert "the same command goes on from there" in found.stderr
    done(*args)
    assert [float(row["loss"]) for row in rows()] == [*LOSSES.values()]


def test_a_finished_csv_is_not_computed_again_nor_replaced_by_another(bowls):
    done(*EVAL)
    whole = (bowls / "evaluation.csv").read_bytes()
    script = (bowls / "bowl.py").read_text()
    (bowls / "bowl.py").write_text(script.replace("** 2).sum()", "** 4).sum()"))
    sys.modules.pop("bowl", None)
    # Not even the data are made.
    script = (bowls / "bowl.py").read_text()
    (bowls / "bowl.py").write_text(script.replace("def data():", "def data():\n    1 / 0\n"))
    told = done(*EVAL).stderr
    assert "best: b.safetensors, loss 4.3125" in told
    assert "3 of 3 evaluations are those of evaluation.csv" in told
    (bowls / "bowl.py").write_text(script)
    sys.modules.pop("bowl", None)
    other = swavg("eval", *PATHS[:2], *MODEL)
    assert other.returncode == 7
    assert "exists already, of a run that differs in 'checkpoints'\n" in other.stderr
    assert "Give --csv another path, or --force to replace it." in other.stderr
    other = swavg(*EVAL, "--batches", 1)
    assert "exists already, of a run that differs in 'batches'\n" in other.stderr
    assert "exists already\n" in swavg(*EVAL, "--restart").stderr
    assert (bowls / "evaluation.csv").read_bytes() == whole
    done("eval", *PATHS[:2], *MODEL, "--csv", "two.csv")
    done(*EVAL, "--restart", "--force")
    assert float(rows()[0]["loss"]) != LOSSES[PATHS[0]]


def counted(bowls):
    """The script with a loss that counts its calls."""
    own = "\n\ncalls = []\n\n\ndef counting(outputs, target):\n    calls.append(1)\n"
    script = (bowls / "bowl.py").read_text()
    (bowls / "bowl.py").write_text(script + own + "    return distance(outputs, target)\n")
    return [arg.replace(":distance", ":counting") for arg in EVAL]


def test_a_csv_gains_what_is_new_and_the_rest_is_not_evaluated_again(bowls):
    args = counted(bowls)
    model = args[4:]
    done("eval", "a.safetensors", "c.safetensors", *model)
    assert len(sys.modules["bowl"].calls) == 2 * 2
    # The new one is not the last.
    told = done(*args).stderr
    assert "best: b.safetensors" in told
    assert "2 of 3 evaluations are those of evaluation.csv" in told
    assert len(sys.modules["bowl"].calls) == 3 * 2
    assert [(row["checkpoint"], float(row["loss"])) for row in rows()] == [*LOSSES.items()]
    # Fewer, or another among them, would lose rows.
    assert swavg("eval", *PATHS[:2], *model).returncode == 7
    done("eval", *PATHS[:2], *model, "--force")
    assert len(sys.modules["bowl"].calls) == 3 * 2
    assert [row["checkpoint"] for row in rows()] == PATHS[:2]
    done("eval", *PATHS[:2], *model, "--force", "--restart")
    assert len(sys.modules["bowl"].calls) == 5 * 2


def test_an_interrupted_run_gains_what_is_new_too(bowls):
    args = counted(bowls)
    done("eval", "a.safetensors", "c.safetensors", *args[4:])
    lines = (bowls / "evaluation.csv").read_bytes().splitlines(keepends=True)
    (bowls / "evaluation.csv.partial").write_bytes(b"".join(lines[:3]))
    (bowls / "evaluation.csv").unlink()
    done(*args)
    assert len(sys.modules["bowl"].calls) == (2 + 2) * 2
    assert [float(row["loss"]) for row in rows()] == [*LOSSES.values()]


def test_another_model_is_another_evaluation(bowls):
    done(*EVAL)
    text = (bowls / "evaluation.csv").read_text()
    save("d.safetensors", weights(CORNERS["a"]))
    for more in (["--loss", "bowl.py:slow"], ["--batches", "1"], ["--metric", "bowl.py:broken"]):
        found = swavg("eval", *PATHS, "d.safetensors", *MODEL, *more, "--mode", "min")
        assert found.returncode == 7
    assert (bowls / "evaluation.csv").read_text() == text


def test_names_that_are_shown_alike_have_their_own_values(bowls):
    names = ["x\n1.safetensors", "x\\n1.safetensors"]
    for name, corner in zip(names, "ab", strict=True):
        save(name, weights(CORNERS[corner]))
    done("eval", names[0], *MODEL)
    found = done("eval", *names, *MODEL, "--json")
    losses = {each["path"]: each["loss"] for each in json.loads(found.stdout)["checkpoints"]}
    assert losses == {name: bowl(CORNERS[at]) for name, at in zip(names, "ab", strict=True)}
    assert f"best: {names[1]}" in found.stderr
    done("soup", *names, *MODEL)


@pytest.mark.parametrize(
    ("option", "names"), [("--key", ["model", "ema"]), ("--strip-prefix", ["model.", "ema."])]
)
def test_other_tensors_of_a_file_are_another_evaluation(classes, option, names):
    _, states = classes
    one, *_, mean = states.values()
    if option == "--key":
        held = {"model": one, "ema": mean}
    else:
        held = {
            f"{at}{name}": each[name]
            for at, each in zip(names, (one, mean), strict=True)
            for name in one
        }
    torch.save(held, "both.pt")
    first = json.loads(done("eval", "both.pt", *NET, option, names[0], "--json").stdout)
    assert swavg("eval", "both.pt", *NET, option, names[1]).returncode == 7
    found = done("eval", "both.pt", *NET, option, names[1], "--force", "--json")
    (found,) = json.loads(found.stdout)["checkpoints"]
    alone = done("eval", "mean.safetensors", *NET, "--csv", "alone.csv", "--json")
    assert found["loss"] == json.loads(alone.stdout)["checkpoints"][0]["loss"]
    assert found["loss"] != first["checkpoints"][0]["loss"]


@pytest.mark.parametrize("numel", [3, 100_003])
def test_a_checkpoint_that_was_replaced_is_evaluated_again(bowls, numel):
    script = (bowls / "bowl.py").read_text().replace("zeros(3)", f"zeros({numel})")
    own = "\n\ndef first(outputs, target):\n    return outputs[0]\n"
    (bowls / "bowl.py").write_text(script + own)
    state = {"first": torch.zeros(numel), "last": torch.zeros(1), "scale": torch.ones(())}
    args = ["eval", "x.safetensors", *MODEL[:-1], "bowl.py:first"]
    save("x.safetensors", state)
    done(*args)
    assert float(rows()[0]["loss"]) == 0
    # Of the same size, and the same at most places.
    state["first"][0] = 1
    save("x.safetensors", state)
    again = swavg(*args)
    assert again.returncode == 7
    done(*args, "--force")
    assert float(rows()[0]["loss"]) == 1


def test_what_a_run_records_chooses_and_what_is_measured_decides(classes):
    Path("log.csv").write_text("step,val_loss\n1,3\n2,1\n3,2\n")
    chosen = ["--best", "2", "--best-by", "val_loss", "--metrics", "log.csv"]
    found = done("eval", "run", *NET, *chosen, "--metric", "error", "--json")
    entries = json.loads(found.stdout)["checkpoints"]
    assert {(entry["path"], entry["step"]) for entry in entries} == {
        ("run/step-2.safetensors", 2), ("run/step-3.safetensors", 3),
    }  # fmt: skip
    last = done("eval", "run", *NET, "--last", "1", "--csv", "last.csv", "--json")
    assert [entry["step"] for entry in json.loads(last.stdout)["checkpoints"]] == [3]
    # What is named is evaluated beside it, and so are averages in a folder of their own.
    done("sweep", "run", "-r", "uniform:last=2", "-r", "uniform:last=3", "-d", "out", "-q")
    more = done("eval", "run", "out", "mean.safetensors", *NET, "--last", "2", "--csv", "all.csv")
    assert [row["checkpoint"] for row in rows("all.csv")] == [
        "run/step-2.safetensors", "run/step-3.safetensors", "out/uniform-last-2.safetensors",
        "out/uniform-last-3.safetensors", "mean.safetensors",
    ]  # fmt: skip
    assert "ignored" not in more.stderr
    one = done("eval", *[*classes[1]][:3], *NET, "--last", "1", "--csv", "one.csv")
    assert [row["checkpoint"] for row in rows("one.csv")] == ["run/step-3.safetensors"], one.stderr
    unused = swavg("eval", "run", *NET, "--best-by", "val_loss")
    assert "--best-by and --metrics say what is best; add --best K." in unused.stderr
    wrong = swavg("eval", "run", *NET, "--metric", "val_loss")
    assert wrong.returncode == 2
    assert "--metric is loss, error or a function (MODULE:NAME), not 'val_loss'" in wrong.stderr


def test_a_checkpoint_that_does_not_fit_the_model_is_refused_before_any_is_evaluated(bowls):
    save("wide.safetensors", {**weights(CORNERS["a"]), "first": torch.zeros(4)})
    found = swavg("eval", "a.safetensors", "wide.safetensors", *MODEL)
    assert found.returncode == 3
    assert "first" in found.stderr
    assert not (bowls / "evaluation.csv.partial").exists()


def test_a_dry_run_says_what_it_would_do_and_does_nothing(bowls):
    found = done(*EVAL, "-n", "--csv", "x.csv")
    assert "3 checkpoints: a.safetensors, b.safetensors, c.safetensors" in found.stdout
    assert "the lowest loss" in found.stdout
    report = json.loads(done(*EVAL, "-n", "--csv", "x.csv", "--json").stdout)
    assert [(entry["path"], entry["loss"]) for entry in report["checkpoints"]] == [
        (path, None) for path in PATHS
    ]
    assert (report["dry_run"], report["best"]) == (True, None)
    assert not (bowls / "x.csv").exists()


def test_standard_output_is_no_csv(bowls):
    found = swavg(*EVAL, "--csv", "-")
    assert found.returncode == 5
    assert "is no place for a file" in found.stderr


def test_what_the_users_code_prints_is_no_data(bowls):
    args = [arg.replace(":data", ":loud") for arg in EVAL]
    found = done(*args, "--json")
    assert json.loads(found.stdout)["best"] == "b.safetensors"
    assert "the user's own line" in found.stderr


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_a_terminal(bowls, columns):
    name = "a-name-that-is-quite-long-" * 4 + ".safetensors"
    save(name, weights(CORNERS["a"]))
    shown, code = on_a_terminal(["eval", name, "b.safetensors", *MODEL], columns)
    assert code == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    table = plain[plain.index("2 checkpoints on") :].splitlines()
    assert all(len(line) <= columns for line in table if not line.startswith("best"))
    assert any("4.3125" in line for line in table)
