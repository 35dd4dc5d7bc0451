"""What a run shows at its end."""

import shutil

import pytest
import torch
from checkpoints import load, save
from command_line import done, process
from framework_files import FRAMEWORKS


def test_inf_that_all_inputs_share_stays_and_is_told(tmp_path):
    for name in "ab":
        save(tmp_path / f"{name}.safetensors", {"m": torch.tensor([1.0, float("-inf")])})
    args = ["a.safetensors", "b.safetensors", "-o", "c.safetensors"]
    finished = done("average", *args, cwd=tmp_path)
    assert "NaN or Inf in the result: m" in finished.stderr
    assert load(tmp_path / "c.safetensors")["m"].tolist() == [1.0, float("-inf")]


def test_tensors_treated_alike_share_a_row(tmp_path):
    x = {"x": torch.ones(2)}
    save(tmp_path / "a.safetensors", x)
    save(tmp_path / "b.safetensors", x | {f"y{i}": torch.ones(1) for i in range(30)})
    finished = done(
        "average", "a.safetensors", "b.safetensors", "--lenient", "-o", "c.st", cwd=tmp_path
    )
    assert finished.stderr.count("missing in a.safetensors") == 1
    assert "27 more" in finished.stderr


def test_an_input_that_looks_wrong_is_a_warning(tmp_path):
    same = {"x": torch.randn(300) + 3}
    save(tmp_path / "a.safetensors", same)
    save(tmp_path / "b.safetensors", same)
    args = ["average", "a.safetensors", "b.safetensors"]
    assert "b.safetensors looks identical to a" in done(*args, cwd=tmp_path).stderr
    quiet = done(*args, "--no-geometry", "--force", cwd=tmp_path)
    assert "identical" not in quiet.stderr


def test_batch_norm_statistics_are_pointed_out(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    for name in "ab":
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    finished = done("average", "a.pt", "b.pt", "--no-geometry", cwd=tmp_path)
    assert "swavg bn averaged.pt --model" in " ".join(finished.stderr.split())


@pytest.mark.parametrize(
    ("inputs", "advice"),
    [
        ("tensorflow/files/keras/ckpt-{}.index", "model(x, training=True)"),
        ("keras/files/archive-{}.keras", "model(x, training=True)"),
        ("flax/files/variables-{}.msgpack", 'model.apply(..., mutable=["batch_stats"])'),
    ],
)
def test_statistics_of_other_frameworks_are_recomputed_there(tmp_path, inputs, advice):
    first = 1 if "tensorflow" in inputs else 0
    paths = [FRAMEWORKS / inputs.format(number) for number in (first, first + 1)]
    finished = done("average", *paths, "-o", "out", "--no-geometry", cwd=tmp_path)
    shown = " ".join(finished.stderr.split())
    assert f"before judging the result recompute them with: {advice}" in shown
    assert "swavg bn" not in shown


def test_warnings_come_last_and_are_no_notes(tmp_path):
    same = {"n.running_mean": torch.ones(3), "n.weight": torch.randn(300) + 3}
    save(tmp_path / "a.safetensors", same | {"n.count": torch.tensor(1)})
    save(tmp_path / "b.safetensors", same | {"n.count": torch.tensor(2)})
    finished = done("average", "a.safetensors", "b.safetensors", cwd=tmp_path)
    tags = [line.split()[0] for line in finished.stderr.splitlines()]
    assert tags == ["note", "averaged", "warning", "warning"]


def figures(*args, cwd):
    """The line that says what was done."""
    lines = done(*args, cwd=cwd).stderr.splitlines()
    return next(line for line in lines if line.startswith(("averaged", "converted")))


def test_the_format_is_said_where_no_name_says_it(tmp_path):
    save(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    torch.save({"x": torch.ones(2)}, tmp_path / "a.pt")
    for args, said in (
        (("a.safetensors", "b.safetensors"), None),
        (("a.safetensors", "b.pt"), None),
        (("a.pt", "plain"), "torch"),
        (("plain", "plain-too"), None),
        (("a.pt", "b.ema"), "torch"),
        (("a.pt", "folder/"), "a Hugging Face folder"),
        (("folder", "folder-too"), None),
        (("a.pt", "shards", "--max-shard-size", "5GB"), None),
        (("folder", "one", "--format", "safetensors"), "safetensors"),
        (("a.pt", "spread", "--format", "dcp"), "dcp"),
    ):
        line = figures("convert", *args, cwd=tmp_path)
        assert line.partition("B as ")[2].partition(" in 0.")[0] == (said or ""), line
    assert " as" not in figures("average", "a.pt", "a.pt", "--force", cwd=tmp_path)
    for name, said in (("a.pt", True), ("a.safetensors", False)):
        streamed = process("convert", name, "-", cwd=tmp_path, text=False)
        assert (b" as safetensors in" in streamed.stderr) == said


def test_a_format_that_is_only_read_is_said_to_be(tmp_path):
    path = next(FRAMEWORKS.rglob("*.msgpack"))
    shutil.copy(path, tmp_path / "checkpoint_1")
    assert " as safetensors (flax is only read) in " in figures(
        "convert", "checkpoint_1", "out", cwd=tmp_path
    )
    assert " as" not in figures("convert", "checkpoint_1", "out.safetensors", cwd=tmp_path)


def test_checkpoints_that_were_chosen_are_named(tmp_path):
    names = [f"step-{step}" for step in range(10, 70, 10)]
    for name in names:
        save(tmp_path / "run" / f"{name}.safetensors", {"x": torch.randn(3)})
    some = figures("average", "run", "--last", "2", "-o", "two.safetensors", cwd=tmp_path)
    assert some.startswith(f"averaged 2 checkpoints ({names[4]}, {names[5]}): 1 tensor,")
    many = figures("ema", "run", "--decay", "0.5", "-o", "ema.safetensors", cwd=tmp_path)
    assert f" 6 checkpoints ({names[0]}, {names[1]}, ..., {names[5]}): " in many
    given = figures("average", *(f"run/{name}.safetensors" for name in names[:2]), cwd=tmp_path)
    assert given.startswith("averaged 2 checkpoints: ")
