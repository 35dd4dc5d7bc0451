"""swavg path: the loss along a line, and whether there is a barrier."""

import csv
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from checkpoints import save
from json_documents import document
from landscape_models import CORNERS, MODEL, bowl, bowls, call, weights

from swavg.errors import NumericsError, RequestError
from swavg.evaluation.landscape.line import Line, line_of, verdict
from swavg.evaluation.landscape.route import Route, route
from swavg.evaluation.survey import Value
from swavg.formats import open_checkpoint

__all__ = ["bowls"]


def rows(path):
    with open(path) as file:
        file.readline()
        return list(csv.DictReader(file))


def between(t, one="a", other="b"):
    return [(1 - t) * x + t * y for x, y in zip(CORNERS[one], CORNERS[other], strict=True)]


def test_the_loss_along_the_line_is_that_of_its_weights(bowls, capsys):
    assert call("path", "a.safetensors", "b.safetensors", *MODEL) == 0
    out, err = capsys.readouterr()
    assert out == "path.png\npath.csv\n"
    assert "no barrier: averaging is safe" in err
    found = rows("path.csv")
    assert len(found) == 25
    named = {row["name"]: float(row["t"]) for row in found if row["name"]}
    assert named == {"a.safetensors": 0, "mean": 0.5, "b.safetensors": 1}
    for row in found:
        t = float(row["t"])
        assert float(row["loss"]) == pytest.approx(bowl(between(t)), rel=1e-5)
        assert float(row["distance"]) == pytest.approx(t * 5**0.5, abs=1e-12)
    at = {float(row["t"]): float(row["loss"]) for row in found}
    assert at[0] == bowl(CORNERS["a"])
    assert at[1] == bowl(CORNERS["b"])


def test_a_path_through_three_has_their_mean_apart(bowls, capsys):
    paths = [f"{name}.safetensors" for name in "abc"]
    assert call("path", *paths, *MODEL, "--from", "0", "--to", "1", "--points", "5", "--json") == 0
    report = document(capsys.readouterr().out)
    assert report["t"] == [0, 0.5, 1, 1.5, 2]
    expected = [between(0), between(0.5), between(1), between(0.5, "b", "c"), between(1, "b", "c")]
    assert [(each["name"], each["t"]) for each in report["checkpoints"]] == [
        (path, at) for at, path in enumerate(paths)
    ]
    assert [each["loss"] for each in report["checkpoints"]] == report["loss"][::2]
    assert report["loss"] == pytest.approx([bowl(values) for values in expected], rel=1e-5)
    mean = torch.tensor(list(CORNERS.values()), dtype=torch.float64).mean(0)
    assert report["mean"]["loss"] == pytest.approx(bowl(mean), rel=1e-5)
    assert rows("path.csv")[0]["name"] == "mean"
    assert [barrier["height"] for barrier in report["barriers"]["loss"]] == [0, 0]
    assert report["safe"] is True


def test_checkpoints_of_two_valleys_have_a_barrier(bowls, capsys):
    script = (bowls / "bowl.py").read_text()
    (bowls / "bowl.py").write_text(
        script + "\n\ndef valleys(outputs, target):\n"
        "    return torch.minimum(((outputs - 1) ** 2).sum(), ((outputs + 1) ** 2).sum())\n"
    )
    save(bowls / "a.safetensors", weights([-1.0] * 4))
    save(bowls / "b.safetensors", weights([1.0] * 4))
    options = [arg.replace(":distance", ":valleys") for arg in MODEL]
    assert call("path", "a.safetensors", "b.safetensors", *options, "--points", "7") == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "a barrier: do not average these" in err
    assert "barrier above the straight line: loss 4 (A to B, 4 apart)" in err


def made(losses, ts, errors=None):
    count = int(max(ts)) + 1
    rates = [None] * len(losses) if errors is None else errors
    values = tuple(Value(a, b, 100) for a, b in zip(losses, rates, strict=True))
    names = tuple("abc"[:count])
    return Line(Route(names, (1.0,) * (count - 1), ts), values, values[ts.index(0.5)])


def test_a_barrier_is_what_lies_above_the_straight_line():
    line = made([1.0, 3.0, 2.5, 2.0], (0.0, 0.25, 0.5, 1.0))
    (barrier,) = line.barriers("loss")
    assert barrier.height == 3 - 1.25
    assert barrier.t == 0.25
    assert barrier.over_mean == 3 - 1.5


def test_beyond_the_ends_there_is_no_barrier():
    line = made([9.0, 1.0, 0.5, 1.0, 9.0], (-0.5, 0.0, 0.5, 1.0, 1.0 + 0.5))
    assert line.barriers("loss")[0].height == 0
    assert verdict(line).text == "no barrier: averaging is safe, and the mean is better than all"


def test_what_is_no_number_between_the_ends_is_the_highest_barrier():
    line = made([1.0, math.nan, 1.0], (0.0, 0.5, 1.0))
    assert line.barriers("loss")[0].height == math.inf
    assert not verdict(line).safe


@pytest.mark.parametrize(
    ("losses", "errors", "safe"),
    [
        ([1.0, 1.01, 1.0], None, True),
        ([1.0, 1.03, 1.0], None, False),
        # Two percentage points of error are what the paper allows.
        ([1.0, 9.0, 1.0], [0.10, 0.119, 0.10], True),
        ([1.0, 1.0, 1.0], [0.10, 0.121, 0.10], False),
        ([1.0, 1.5, 2.0], None, True),
    ],
)
def test_the_verdict_goes_by_the_error_where_there_is_one(losses, errors, safe):
    assert verdict(made(losses, (0.0, 0.5, 1.0), errors)).safe is safe


def test_a_checkpoint_without_a_finite_loss_is_refused():
    found = Route(("a", "b"), (1.0,), (0.0, 0.5, 1.0))
    values = [Value(1.0, None, 1), Value(1.0, None, 1), Value(math.inf, None, 1)]
    with pytest.raises(NumericsError, match="b: its loss is inf"):
        line_of(found, values)


def opened(bowls, *names):
    return [open_checkpoint(bowls / f"{name}.safetensors") for name in names]


def test_checkpoints_are_met_exactly_whatever_the_points(bowls):
    found = route(opened(bowls, "a", "b"), [("first",), ("last",)], points=8, start=-0.1, end=1.2)
    assert {0.0, 0.5, 1.0} <= set(found.ts)
    assert len(found.ts) == 11
    assert found.coefficients(0.0) == (1, 0)
    assert found.coefficients(1.0) == (0, 1)
    assert found.coefficients(1.2) == pytest.approx((-0.2, 1.2))
    three = route(opened(bowls, "a", "b", "c"), [("first",), ("last",)], points=3, start=0, end=1)
    assert three.coefficients(1.0) == (0, 1, 0)
    assert three.coefficients(2.0) == (0, 0, 1)
    assert three.coefficients(0.25) == (0.75, 0.25, 0)
    assert three.distance(2.0) == pytest.approx(sum(three.lengths))


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ("a", {}, "two checkpoints or more"),
        ("aa", {}, "have the same weights"),
        ("ab", {"start": 0.1}, "leaves out a checkpoint"),
        ("ab", {"end": 0.9}, "leaves out a checkpoint"),
        ("ab", {"end": math.inf}, "leaves out a checkpoint"),
        ("ab", {"points": 1}, "a line needs two"),
    ],
)
def test_what_is_no_line_is_refused(bowls, names, options, message):
    wanted = {"points": 5, "start": 0.0, "end": 1.0} | options
    with pytest.raises(RequestError, match=message):
        route(opened(bowls, *names), [("first",), ("last",)], **wanted)


def test_a_path_goes_on_from_its_rows(bowls):
    args = ["path", "a.safetensors", "b.safetensors", *MODEL, "--points", "9", "-q"]
    assert call(*args) == 0
    whole = (bowls / "path.csv").read_bytes()
    lines = whole.splitlines(keepends=True)
    (bowls / "path.csv.partial").write_bytes(b"".join(lines[:5]) + lines[5][:7])
    (bowls / "path.csv").unlink()
    (bowls / "path.png").unlink()
    assert call(*args) == 0
    assert (bowls / "path.csv").read_bytes() == whole


def test_a_dry_run_of_a_path_says_what_it_would_do(bowls, capsys):
    assert call("path", "a.safetensors", "b.safetensors", *MODEL, "-n") == 0
    out, _ = capsys.readouterr()
    assert "25 from t = -0.25 to 1.25" in out
    assert "2.236 apart" in out
    assert call("path", "a.safetensors", "b.safetensors", *MODEL, "-n", "--json") == 0
    found = document(capsys.readouterr().out)
    assert (found["dry_run"], found["evaluations"], found["loss"]) == (True, 25, None)
    assert not (bowls / "path.csv").exists()


def test_the_middle_between_each_two_is_always_measured(bowls):
    args = ["path", "a.safetensors", "b.safetensors", "c.safetensors", *MODEL, "--points", "2"]
    assert call(*args, "--json") == 0
    with open("path.csv") as file:
        file.readline()
        found = [float(row["t"]) for row in csv.DictReader(file) if row["t"]]
    assert {0.0, 0.5, 1.0, 1.5, 2.0} <= set(found)


def test_a_prefix_of_one_checkpoint_is_taken_off(bowls, capsys):
    state = {f"model.{name}": tensor for name, tensor in weights(CORNERS["a"]).items()}
    save("wrapped.safetensors", state)
    paths = ["wrapped.safetensors", "b.safetensors"]
    assert call("path", *paths, *MODEL, "--points", "3") == 3
    assert "are in wrapped.safetensors under 'model.'" in capsys.readouterr().err
    assert call("path", *paths, *MODEL, "--points", "3", "--strip-prefix", "model.") == 0
    losses = {row["name"]: float(row["loss"]) for row in rows("path.csv") if row["name"]}
    assert losses["wrapped.safetensors"] == bowl(CORNERS["a"])
    assert losses["b.safetensors"] == bowl(CORNERS["b"])


def test_where_there_is_no_terminal_a_line_comes_now_and_then(bowls, monkeypatch, capsys):
    ticks = itertools.count(0.0, 30.0)
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr("swavg.console.progress.time", clock)
    assert call("path", "a.safetensors", "b.safetensors", *MODEL, "--points", "3") == 0
    shown = capsys.readouterr().err
    assert "measuring 32 of 32 B" in shown
    assert "evaluating 1 of 5 points" in shown
