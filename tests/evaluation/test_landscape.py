"""swavg landscape: values that are known, going on after a crash, and what it refuses."""

import csv
import fcntl
import json
import math
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
import torch
from checkpoints import load, save
from json_documents import document
from landscape_models import CENTRE, CORNERS, LANDSCAPE, MODEL, bowl, bowls, call, weights
from torch import nn

from swavg.evaluation.landscape import drawing

pytestmark = pytest.mark.slow

__all__ = ["bowls"]

HEAD = ("kind", "name", "x", "y", "off", "loss", "error", "examples")


def rows(path):
    with open(path) as file:
        first = file.readline()
        assert first.startswith("# swavg {")
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == HEAD
    return found


def axes():
    """Unit vectors of the bowls' plane, in float64."""
    w1, w2, w3 = (np.array(values) for values in CORNERS.values())
    u = w2 - w1
    v = (w3 - w1) - (w3 - w1) @ u / (u @ u) * u
    return w1, u / np.linalg.norm(u), v / np.linalg.norm(v)


def test_the_loss_of_every_point_is_that_of_its_weights(bowls, capsys):
    assert call(*LANDSCAPE, "--grid", "5x4") == 0
    out, err = capsys.readouterr()
    assert out == "landscape.png\nlandscape.csv\n"
    assert "W3       loss" in err
    found = rows("landscape.csv")
    assert [row["name"] for row in found[:4]] == ["W1", "W2", "W3", "average"]
    origin, across, up = axes()
    grid = [row for row in found if row["kind"] == "grid"]
    assert len(grid) == 20
    assert len(found) == 24
    for row in found:
        weights = origin + float(row["x"]) * across + float(row["y"]) * up
        assert float(row["loss"]) == pytest.approx(bowl(weights), rel=1e-5)
        assert row["examples"] == "3"
        assert row["error"] == ""
    for row, values in zip(found, CORNERS.values(), strict=False):
        # Just the checkpoints themselves: nothing is rounded.
        assert float(row["loss"]) == bowl(torch.tensor(values))
    assert bowls.joinpath("landscape.png").read_bytes()[:4] == b"\x89PNG"
    made = {path.name for path in bowls.iterdir() if "landscape" in path.name}
    assert made == {"landscape.png", "landscape.csv"}


def test_the_csv_is_this_one(bowls):
    assert call(*LANDSCAPE, "--grid", "2", "--margin", "0", "-o", "x.svg", "-q") == 0
    head, columns, *lines = bowls.joinpath("x.csv").read_text().splitlines()
    asked = json.loads(head.removeprefix("# swavg "))
    side, foot, height = asked.pop("plane")
    digests = [facts.pop("digest") for facts in asked["checkpoints"]]
    assert len({digest for digest in digests if len(digest) == 16}) == 3
    size = os.path.getsize("a.safetensors")
    assert asked == {
        "survey": "landscape",
        "version": asked["version"],
        "checkpoints": [
            {"name": f"{name}.safetensors", "bytes": size, "changed": None} for name in "abc"
        ],
        "grid": [2, 2],
        "model": "bowl.py:Bowl",
        "data": "bowl.py:data",
        "batches": None,
        "loss": "bowl.py:distance",
        "batch_norm": None,
        "device": "cpu",
    }
    assert side == pytest.approx(5**0.5)
    assert foot == pytest.approx(2 / 5**0.5)
    assert columns == ",".join(HEAD)
    assert lines[0] == "corner,W1,0.0,0.0,0.0,5.3125,,3"
    assert lines[1] == f"corner,W2,{side!r},0.0,0.0,4.3125,,3"
    assert lines[2] == f"corner,W3,{foot!r},{height!r},0.0,8.8125,,3"
    assert lines[4].startswith("grid,,0.0,0.0,,5.3125")
    assert [line.split(",")[2:4] for line in lines[4:]] == [
        ["0.0", "0.0"], [repr(side), "0.0"], ["0.0", repr(height)], [repr(side), repr(height)],
    ]  # fmt: skip


def test_marks_and_a_series_are_projected_and_marks_have_their_own_loss(bowls, capsys):
    origin, across, up = axes()
    off = np.array([0.0, 0.3, 0.0, 0.4])
    off -= (off @ across) * across + (off @ up) * up
    inside = origin + 0.7 * across + 0.4 * up
    save(bowls / "avg.safetensors", weights((inside + off).tolist()))
    for step in (1, 2):
        save(bowls / "run" / f"step-{step}.safetensors", weights((inside * step).tolist()))
    extra = ["--mark", "avg.safetensors", "--series", "run", "--grid", "3", "--json"]
    assert call(*LANDSCAPE, *extra) == 0
    out, err = capsys.readouterr()
    report = document(out)
    assert report["dry_run"] is False
    mark = next(point for point in report["points"] if point["kind"] == "mark")
    assert mark["name"] == "avg"
    assert (mark["x"], mark["y"]) == (pytest.approx(0.7), pytest.approx(0.4, rel=1e-5))
    assert mark["off"] == pytest.approx(np.linalg.norm(off), rel=1e-5)
    stored = load(bowls / "avg.safetensors")
    assert mark["loss"] == pytest.approx(bowl(torch.cat([stored["first"], stored["last"]])))
    trail = [point for point in report["points"] if point["kind"] == "trail"]
    assert [point["x"] for point in trail] == [pytest.approx(0.7), pytest.approx(1.4)]
    assert [point["loss"] for point in trail] == [None, None]
    assert "avg lies" in err
    assert "off the plane" in err
    assert report["output"] == "landscape.png"
    assert set(report["plane"]) == {"side", "foot", "height"}


def test_a_run_that_was_killed_goes_on_and_gives_the_same_bytes(bowls):
    args = [arg.replace(":distance", ":slow") for arg in LANDSCAPE] + ["--grid", "5", "-q"]
    command = [sys.executable, "-m", "swavg", *args]
    partial = bowls / "landscape.csv.partial"
    running = subprocess.Popen(command, cwd=bowls)
    until = time.monotonic() + 60
    while not partial.exists() or partial.read_bytes().count(b"\n") < 8:
        assert running.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not bowls.joinpath("landscape.csv").exists()
    before = partial.read_bytes()
    # The last line as a crash may leave it.
    partial.write_bytes(before + b"grid,,0.3")
    assert call(*args) == 0
    assert not partial.exists()
    whole = bowls.joinpath("landscape.csv").read_bytes()
    assert whole.startswith(before[: before.rindex(b"\n") + 1])
    picture = bowls.joinpath("landscape.png").read_bytes()
    assert call(*args, "--force", "--restart") == 0
    assert bowls.joinpath("landscape.csv").read_bytes() == whole
    assert bowls.joinpath("landscape.png").read_bytes() == picture


def test_an_interrupt_says_that_the_run_can_go_on(bowls):
    args = [arg.replace(":distance", ":slow") for arg in LANDSCAPE] + ["--grid", "40"]
    command = [sys.executable, "-m", "swavg", *args]
    partial = bowls / "landscape.csv.partial"
    running = subprocess.Popen(
        command, cwd=bowls, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not partial.exists() or partial.read_bytes().count(b"\n") < 4:
        assert running.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate()
    assert running.returncode == 130
    assert out == ""
    assert re.search(r"interrupted \d+ of 1604 points are in \S*landscape\.csv\.partial", err)
    assert "the same command goes on from there" in err
    assert partial.exists()
    assert not bowls.joinpath("landscape.csv").exists()


def leave_partial(folder, *more):
    """A table with a few rows, as an interrupted run leaves it."""
    assert call(*LANDSCAPE, "--grid", "3", "-q", *more) == 0
    finished = folder / "landscape.csv"
    lines = finished.read_bytes().splitlines(keepends=True)
    (folder / "landscape.csv.partial").write_bytes(b"".join(lines[:6]))
    finished.unlink()
    (folder / "landscape.png").unlink()
    return b"".join(lines)


def test_other_options_do_not_go_on_with_what_is_there(bowls, capsys):
    leave_partial(bowls)
    args = [arg.replace("bowl.py:data", "bowl.py:loud") for arg in LANDSCAPE] + ["--grid", "3"]
    before = (bowls / "landscape.csv.partial").read_bytes()
    assert call(*args) == 5
    err = " ".join(capsys.readouterr().err.split())
    assert "was left by a run that differs in 'data'" in err
    assert (bowls / "landscape.csv.partial").read_bytes() == before
    assert call(*args, "--force") == 0
    out, err = capsys.readouterr()
    assert out == "landscape.png\nlandscape.csv\n"
    assert "the user's own line" in err


def test_rows_that_are_there_are_not_computed_again(bowls):
    whole = leave_partial(bowls)
    partial = bowls / "landscape.csv.partial"
    partial.write_bytes(partial.read_bytes().replace(b",5.3125,", b",1234.5,"))
    assert call(*LANDSCAPE, "--grid", "3", "-q") == 0
    found = (bowls / "landscape.csv").read_bytes()
    assert found == whole.replace(b",5.3125,,3\n", b",1234.5,,3\n", 1)
    assert found != whole


@pytest.mark.parametrize("change", [lambda row: row.replace(b"W2", b"W9"), lambda row: b"x\n"])
def test_a_table_with_other_rows_is_not_continued(bowls, change, capsys):
    leave_partial(bowls)
    partial = bowls / "landscape.csv.partial"
    lines = partial.read_bytes().splitlines(keepends=True)
    lines[3] = change(lines[3])
    partial.write_bytes(b"".join(lines))
    assert call(*LANDSCAPE, "--grid", "3") == 5
    assert "row 2 is not the one that belongs there" in " ".join(capsys.readouterr().err.split())
    assert call(*LANDSCAPE, "--grid", "3", "--restart", "-q") == 0


def test_changed_weights_are_another_survey(bowls):
    leave_partial(bowls)
    save(bowls / "b.safetensors", weights([2.0, 0.0, 1.5, 0.0]))
    assert call(*LANDSCAPE, "--grid", "3", "-q") == 5


def test_a_figure_is_drawn_again_from_a_finished_csv(bowls, capsys):
    assert call(*LANDSCAPE, "--grid", "3", "-q") == 0
    before = (bowls / "landscape.csv").stat().st_mtime_ns
    assert call(*LANDSCAPE, "--grid", "3", "-q") == 7
    assert "landscape.png: exists already" in capsys.readouterr().err
    again = ["-o", "other.pdf", "--csv", "landscape.csv", "--of", "test", "--labels", "x,y"]
    assert call(*LANDSCAPE, "--grid", "3", "-q", *again) == 0
    assert (bowls / "other.pdf").read_bytes()[:4] == b"%PDF"
    assert (bowls / "landscape.csv").stat().st_mtime_ns == before


def test_a_restart_computes_a_finished_csv_anew(bowls, capsys):
    assert call(*LANDSCAPE, "--grid", "3", "-q") == 0
    path = bowls / "landscape.csv"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b",5.3125,", b",1234.5,"))
    (bowls / "landscape.png").unlink()
    assert call(*LANDSCAPE, "--grid", "3", "-q", "--restart") == 7
    assert "landscape.csv: exists already" in capsys.readouterr().err
    assert call(*LANDSCAPE, "--grid", "3", "-q", "--restart", "--force") == 0
    assert path.read_bytes() == whole


def test_two_runs_do_not_write_one_table(bowls, capsys):
    with open(bowls / "landscape.csv.partial", "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert call(*LANDSCAPE, "--grid", "3") == 5
    assert "is being written by another run" in " ".join(capsys.readouterr().err.split())


def test_losses_that_are_no_numbers_are_listed_and_drawn(bowls):
    args = [arg.replace(":distance", ":broken") for arg in LANDSCAPE]
    assert call(*args, "--grid", "7", "--margin", "1", "-q") == 0
    losses = {row["loss"] for row in rows("landscape.csv")}
    assert {"nan", "inf"} <= losses
    assert (bowls / "landscape.png").exists()


def test_without_matplotlib_there_is_a_csv_and_a_note(bowls, monkeypatch, capsys):
    monkeypatch.setattr(drawing, "available", lambda: False)
    assert call(*LANDSCAPE, "--grid", "3", "-o", "x.png") == 2
    assert not (bowls / "x.csv").exists()
    assert "pip install matplotlib, or leave out --output" in capsys.readouterr().err
    assert call(*LANDSCAPE, "--grid", "3") == 0
    out, err = capsys.readouterr()
    assert out == "landscape.csv\n"
    assert "pip install matplotlib" in " ".join(err.split())
    assert not (bowls / "landscape.png").exists()


def test_folders_above_the_outputs_are_made_where_there_is_something_to_keep(bowls):
    more = ["--grid", "3", "-o", "new/deep/x.png"]
    assert call(*LANDSCAPE, *more, "--loss", "bowl.py:fails") == 2
    assert not (bowls / "new").exists()
    assert call(*LANDSCAPE, *more) == 0
    assert sorted(os.listdir(bowls / "new" / "deep")) == ["x.csv", "x.png"]


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["-o", "x.gif"], 2, "names no kind of figure"),
        (["-o", "a.safetensors/x.png"], 5, "'a.safetensors' is no folder"),
        (["--csv", "a.safetensors", "--force"], 5, "is an input"),
        (["-o", "x.svg", "--csv", "x.svg"], 2, "the figure and the csv would both be"),
        (["--grid", "many"], 2, "--grid is 'many'"),
        (["--margin", "-1"], 2, "--margin is -1"),
        (["--labels", "1,2,3,4,5"], 2, "--labels names 5 points; there are 4"),
        (["--bn-data", "bowl.py:data"], 2, "has no batch-norm"),
        (["--keep-bn", "--bn-data", "bowl.py:data"], 2, "--bn-data has no use"),
        (["--metric", "error", "--grid", "2"], 6, "no error rate"),
        (["--model", "bowl.py:data"], 2, "not a torch.nn.Module"),
        (["--data", "bowl.py:Nothing"], 2, "has no 'Nothing'"),
        (["--loss", "bowl.py:fails"], 2, "no luck"),
        (["--mark", "missing.pt"], 4, "no such file"),
    ],
)
def test_what_cannot_be_done_is_refused_and_leaves_nothing(bowls, more, code, message, capsys):
    before = sorted(path.name for path in bowls.iterdir() if path.is_file())
    assert call(*LANDSCAPE, "--grid", "3", *more) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in " ".join(err.split())
    after = sorted(path.name for path in bowls.iterdir() if path.is_file())
    # Values that cost time stay for the next run.
    assert [name for name in after if not name.endswith(".partial")] == before


def test_checkpoints_on_a_line_are_refused_with_a_way_out(bowls, capsys):
    save(bowls / "c.safetensors", weights([1.0, 0.0, 0.5, 0.0]))
    assert call(*LANDSCAPE, "--grid", "3") == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "a.safetensors, b.safetensors, c.safetensors lie on one line" in err
    assert "swavg path" in err


def test_a_model_of_another_kind_is_refused(bowls, capsys):
    (bowls / "bowl_other.py").write_text("import torch\nNet = torch.nn.Linear(2, 2)\n")
    assert call(*LANDSCAPE, "--model", "bowl_other.py:Net") == 3
    assert "missing" in capsys.readouterr().err


def test_a_dry_run_writes_and_evaluates_nothing(bowls, capsys):
    args = [arg.replace(":distance", ":fails") for arg in LANDSCAPE]
    assert call(*args, "--grid", "5x7", "-n") == 0
    out, _ = capsys.readouterr()
    assert "39 points" in out
    assert "2.236 from W1" in out
    assert "landscape.png, landscape.csv" in out
    assert call(*args, "--grid", "5x7", "-n", "--json") == 0
    found = document(capsys.readouterr().out)
    assert (found["dry_run"], found["evaluations"], found["csv"]) == (True, 39, "landscape.csv")
    assert [point["loss"] for point in found["points"]] == [None] * 4
    assert not (bowls / "landscape.csv").exists()
    assert not (bowls / "landscape.csv.partial").exists()


NORMED = """
import torch
from torch import nn

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=generator) * 3 + 1
Y = torch.randint(3, (60,), generator=generator)


def net():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def train():
    yield from zip(X[:40].split(10), Y[:40].split(10))


def test():
    return list(zip(X[40:].split(10), Y[40:].split(10)))
"""


@pytest.fixture
def normed(tmp_path, monkeypatch):
    (tmp_path / "bowl_norm.py").write_text(NORMED)
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(NORMED, scope)
    torch.manual_seed(4)
    for name in "abc":
        net = scope["net"]()
        nn.init.normal_(net[1].running_mean)
        save(tmp_path / f"{name}.safetensors", net.state_dict())
    yield tmp_path, scope
    sys.modules.pop("bowl_norm", None)


@pytest.mark.parametrize("how", ["data", "bn-data", "keep"])
def test_batch_norm_statistics_are_recomputed_or_interpolated(normed, how, capsys):
    folder, scope = normed
    more = {"data": [], "bn-data": ["--bn-data", "bowl_norm.py:train"], "keep": ["--keep-bn"]}[how]
    base = ["landscape", *(f"{name}.safetensors" for name in "abc")]
    model = ["--model", "bowl_norm.py:net", "--data", "bowl_norm.py:test"]
    assert call(*base, *model, *more, "--grid", "3", "--metric", "both") == 0
    assert (
        "recomputed for each evaluation on --data" in " ".join(capsys.readouterr().err.split())
    ) == (how == "data")
    average = rows("landscape.csv")[3]
    states = [load(folder / f"{name}.safetensors") for name in "abc"]
    mean = {
        name: (sum(state[name].double() for state in states) / 3).to(states[0][name].dtype)
        for name in states[0]
    }
    net = scope["net"]()
    net.load_state_dict(mean)
    if how != "keep":
        torch.optim.swa_utils.update_bn(list(scope["test" if how == "data" else "train"]()), net)
    net.eval()
    with torch.no_grad():
        logits, targets = net(scope["X"][40:]), scope["Y"][40:]
        expected = nn.functional.cross_entropy(logits, targets).item()
    assert float(average["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(average["error"]) == int((logits.argmax(1) != targets).sum()) / 20
    # Statistics are no weights: they do not count in the distance between checkpoints.
    one, other = states[0], states[1]
    parameters = [name for name, _ in net.named_parameters()]
    apart = sum(((one[n].double() - other[n].double()) ** 2).sum() for n in parameters) ** 0.5
    assert float(rows("landscape.csv")[1]["x"]) == pytest.approx(float(apart), rel=1e-12)


def test_the_centre_of_the_bowl_is_the_lowest_where_the_plane_goes_through_it(bowls, capsys):
    save(bowls / "c.safetensors", weights(CENTRE.tolist()))
    assert call(*LANDSCAPE, "--grid", "41", "--json", "-q") == 0
    report = document(capsys.readouterr().out)
    third = report["points"][2]
    step = report["grid"]["x"][1] - report["grid"]["x"][0]
    assert abs(report["lowest"]["x"] - third["x"]) < step
    assert abs(report["lowest"]["y"] - third["y"]) < step
    assert report["lowest"]["loss"] < 0.01


def test_the_help_names_every_option():
    found = subprocess.run(
        [sys.executable, "-m", "swavg", "landscape", "--help"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for option in (
        "--mark",
        "--series",
        "--grid",
        "--margin",
        "--bn-data",
        "--keep-bn",
        *MODEL[::2],
    ):
        assert option in found


def test_without_torch_it_says_what_to_install(bowls):
    code = (
        "import sys; sys.modules['torch'] = None; from swavg.cli import main;"
        f" main({[*LANDSCAPE, '--grid', '3']!r})"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=bowls, check=False
    )
    assert found.returncode == 2
    assert "pip install torch" in found.stderr


def on_a_terminal(folder, *args):
    """What a terminal of 80 columns shows on stderr, and the standard output."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": "1"}
    running = subprocess.Popen(
        [sys.executable, "-m", "swavg", *args],
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=theirs, text=True,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            more = os.read(ours, 1 << 16)
        except OSError:
            break
        if not more:
            break
        shown += more
    os.close(ours)
    out, _ = running.communicate()
    assert running.returncode == 0
    return shown.decode(), out


def test_a_terminal_shows_progress_the_picture_and_the_points(bowls):
    shown, out = on_a_terminal(bowls, *LANDSCAPE, "--grid", "5")
    assert out == "landscape.png\nlandscape.csv\n"
    assert "evaluating" in shown
    assert "29 of 29 points" in shown
    assert "▒▒" in shown
    assert " 1 " in shown
    assert "W1       loss 5.312" in shown
    assert "loss on the grid: " in shown


def test_a_terminal_shows_the_chart_of_a_path(bowls):
    shown, out = on_a_terminal(bowls, "path", "a.safetensors", "b.safetensors", *MODEL)
    assert out == "path.png\npath.csv\n"
    assert "25 of 25 points" in shown
    assert "└──" in shown
    assert "no barrier: averaging is safe" in shown


def test_points_without_a_finite_loss_are_counted(bowls, capsys):
    broken = [*LANDSCAPE[:-1], "bowl.py:broken"]
    assert call(*broken, "--grid", "5x5", "--margin", "1", "--json") == 0
    out, err = capsys.readouterr()
    lost = sum(not math.isfinite(float(row["loss"])) for row in rows("landscape.csv")[4:])
    assert lost > 0
    said = f"{lost} of 25 points of the grid have no finite loss"
    assert said in " ".join(err.split())
    assert any(said in note for note in document(out)["notes"])


def test_a_model_that_the_checkpoints_are_not_of_is_to_blame(bowls, capsys):
    (bowls / "bowl_other.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Linear(3, 1)\n"
    )
    wrong = ["landscape", *LANDSCAPE[1:4], "--model", "bowl_other.py:build", *LANDSCAPE[6:]]
    assert call(*wrong) == 3
    err = " ".join(capsys.readouterr().err.split())
    assert "the model has 'weight' and 1 more that no checkpoint has" in err


def test_a_prefix_of_some_checkpoints_is_taken_off(bowls, capsys):
    state = {f"model.{name}": tensor for name, tensor in weights(CORNERS["a"]).items()}
    save("wrapped.safetensors", state)
    paths = ["b.safetensors", "wrapped.safetensors", "c.safetensors", "--mark", "a.safetensors"]
    command = ["landscape", *paths, *MODEL, "--grid", "3", "--json", "--strip-prefix"]
    assert call(*command, "modle.") == 2
    assert "Did you mean 'model.'?" in capsys.readouterr().err
    assert call(*command, "model.") == 0
    points = document(capsys.readouterr().out)["points"]
    losses = {point["name"]: point["loss"] for point in points}
    assert losses["W2"] == losses["a"] == bowl(CORNERS["a"])
