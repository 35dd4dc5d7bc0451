"""What a run shows at its end."""

import pytest
import torch
from checkpoints import load, save
from command_line import done
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
