"""``swavg list``: the table, the chart, and what would be chosen."""

import json
import re

import pytest
import torch
from checkpoints import save, series, state
from command_line import done, swavg
from run_of_five import STEPS

LOSSES = {100: 0.9, 200: 0.5, 300: 0.3, 400: 0.45}


@pytest.fixture
def folder(tmp_path):
    """A run of four snapshots, with the losses in their names."""
    for step, loss in LOSSES.items():
        save(tmp_path / f"run/step={step}-val_loss={loss}.safetensors", state(step))
    return tmp_path


def test_a_table_shows_the_run_in_step_order_with_a_chart(folder):
    (folder / "run/step=500.safetensors.tmp").write_bytes(b"x")
    done = swavg("list", "run", cwd=folder)
    assert (done.returncode, done.stderr) == (
        0,
        "note ignored step=500.safetensors.tmp: partial, temporary or empty\n",
    )
    rows = [line.split() for line in done.stdout.splitlines() if "safetensors" in line]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        (str(step), f"step={step}-val_loss={loss}.safetensors", f"{loss:.2f}")
        for step, loss in LOSSES.items()
    ]
    assert done.stdout.splitlines()[0] == "run · 4 checkpoints · f32 98%, int64 2%"
    assert "val_loss lower is better" in done.stdout
    assert "best 0.3 at step 300" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_names_stay_whole_where_sizes_have_no_room(tmp_path):
    for step in (1, 2):
        name = f"epoch=0-step={step}-{'a' * 36}.safetensors"
        save(tmp_path / "run" / name, state(step), {"loss": f"0.{step}"})
    lines = swavg("list", "run", cwd=tmp_path).stdout.splitlines()
    assert [word for line in lines for word in line.split() if "safetensors" in word] == [
        f"epoch=0-step={step}-{'a' * 36}.safetensors" for step in (1, 2)
    ]
    assert max(map(len, lines)) <= 80
    assert not any("size" in line for line in lines)


def test_bars_are_as_high_as_their_values(folder):
    lines = swavg("list", "run", cwd=folder).stdout.splitlines()
    bars = [line.partition("│")[2].ljust(24) for line in lines if "│" in line]
    heights = [sum(bar[6 * i] == "█" for bar in bars) for i in range(4)]
    assert heights == [6, 2, 0, 1]
    assert bars[-1][12] == "▁"


def test_what_would_be_chosen_is_marked(folder):
    done = swavg("list", "run", "--best", "2", "--metric", "val_loss", cwd=folder)
    marked = re.findall(r"●\s+(\d+)", done.stdout)
    assert (done.returncode, marked) == (0, ["300", "400"])
    assert done.stdout.startswith("run · 4 checkpoints · f32 98%, int64 2% · 2 chosen\n")


def test_json_holds_all_of_it(folder):
    done = swavg("list", "run", "--last", "2", "--json", cwd=folder)
    found = json.loads(done.stdout)
    assert (found["unit"], found["notes"]) == ("step", [])
    assert found["selected"] == [
        "run/step=300-val_loss=0.3.safetensors",
        "run/step=400-val_loss=0.45.safetensors",
    ]
    first = found["checkpoints"][0]
    assert first["size"] == (folder / first["path"]).stat().st_size
    del first["size"]
    assert first == {
        "path": "run/step=100-val_loss=0.9.safetensors",
        "step": 100,
        "step_from": "name",
        "counts": {"step": 100},
        "dtypes": {"float32": 63, "int64": 1},
        "metrics": {"val_loss": 0.9},
        "selected": False,
    }


def test_a_number_that_is_none_is_null_in_json(folder):
    save(folder / "x/step=1-val_loss=nan.safetensors", state(1))
    found = json.loads(swavg("list", "x", "--json", cwd=folder).stdout)
    assert found["checkpoints"][0]["metrics"] == {"val_loss": None}
    assert found["selected"] is None


def test_metrics_come_from_a_file(folder):
    torch.save({"model": state(1)}, folder / "step_1.pt")
    torch.save({"model": state(1, torch.bfloat16)}, folder / "step_2.pt")
    (folder / "log.csv").write_text("step,bleu\n1,20.5\n2,30\n")
    done = swavg("list", "step_1.pt", "step_2.pt", "--metrics", "log.csv", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines() if ".pt" in line]
    assert [(row[0], row[-1]) for row in rows] == [("1", "20.5"), ("2", "30.0")]
    assert ["bf16" in " ".join(row) for row in rows] == [False, True]


def test_a_checkpoint_that_cannot_be_read_is_listed_as_that(folder):
    (folder / "run/step=500.safetensors").write_bytes(b"broken!!!")
    done = swavg("list", "run", cwd=folder)
    assert done.returncode == 0
    (row,) = [line for line in done.stdout.splitlines() if "step=500" in line]
    assert "unreadable" in row
    assert "run/step=500.safetensors: " in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["run", "--last", "9"], 2, "Asked for the last 9 checkpoints and found 4"),
        (["run", "--last", "x"], 2, "'x' is not a valid integer"),
        (["run", "--best", "1", "--metric", "bleu"], 2, "No checkpoint has a bleu"),
        (["run", "--best", "1", "--metric", "eval_x"], 2, "No checkpoint has an eval_x"),
        (["run", "--pattern", "*.pt"], 4, "run: holds no checkpoints that match '*.pt'"),
        (["nowhere"], 4, "nowhere: no such file"),
        (["run", "--metrics", "nowhere"], 4, "nowhere: no such file"),
        ([], 2, "Give a folder of checkpoints"),
    ],
)
def test_what_cannot_be_listed_is_said_with_its_code(folder, args, code, message):
    done = swavg("list", *args, cwd=folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


def test_paths_come_from_stdin_in_any_order(folder):
    paths = sorted((folder / "run").iterdir(), reverse=True)
    done = swavg("list", "-", "--json", stdin="\n".join(map(str, paths)))
    assert [entry["step"] for entry in json.loads(done.stdout)["checkpoints"]] == sorted(LOSSES)


def test_names_with_control_characters_cannot_write_to_the_terminal(folder):
    save(folder / "odd/step_1[red]\x1b[31m.safetensors", state(1))
    done = swavg("list", "odd", cwd=folder)
    assert "\x1b" not in done.stdout
    assert "step_1[red]\\x1b[31m.safetensors" in done.stdout


def test_commands_follow_each_other_in_one_process(tmp_path, capsys):
    from swavg.cli import main

    series(tmp_path, 2)
    for arguments in (["list", str(tmp_path)], ["list", str(tmp_path)], ["--help"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
    assert "landscape" in capsys.readouterr().out


def test_the_paths_alone_of_what_is_chosen(run):
    names = [f"run/step_{step}-val_loss={1 / step:.3f}.safetensors" for step in STEPS]
    assert done("list", "run", "--paths", cwd=run).stdout.splitlines() == names
    found = done("list", "run", "--last", 2, "--paths", "-0", cwd=run).stdout
    assert found == "".join(f"{name}\0" for name in names[-2:])


def test_a_name_of_two_lines_is_printed_with_nul_alone(run):
    """Whoever reads lines would take it for two paths."""
    first = STEPS[0]
    (path,) = (run / "run").glob(f"*{first}-*")
    path.rename(run / "run" / f"step_{first}\nx.safetensors")
    found = swavg("list", "run", "--paths", cwd=run)
    assert (found.returncode, found.stdout) == (2, "")
    assert "has a newline in its name. Use --null." in " ".join(found.stderr.split())
    assert f"step_{first}\nx.safetensors\0" in done("list", "run", "--paths", "-0", cwd=run).stdout
