"""What is reported: before a run what will be, after it what was."""

import json

import pytest
import torch
from checkpoints import planned, save, series, state

import swavg
from swavg import Policy, Resources, Row
from swavg.engine.average import dry_run


def test_what_will_be_is_what_was(tmp_path):
    plan = planned(series(tmp_path / "in"), tmp_path / "out.safetensors", (0.5, 0.3, 0.2))
    run = Resources(threads=2)
    (before,), (after,) = dry_run(plan, run), swavg.execute(plan, run)
    assert (before.seconds, before.inputs[0].relative_distance) == (None, None)
    for name in ("output", "tensors", "elements", "read", "written", "files", "memory", "threads",
                 "recipe", "ties", "not_averaged", "notes"):  # fmt: skip
        assert getattr(before, name) == getattr(after, name), name
    assert after.written == (tmp_path / "out.safetensors").stat().st_size


def test_an_input_is_named_with_its_weight_size_and_dtypes(tmp_path):
    paths = series(tmp_path / "in", 2)
    report = swavg.average(paths, [0.25, 0.75], output=tmp_path / "out.safetensors")
    first, second = report.inputs
    assert (first.name, first.path, first.weight) == ("step-100.safetensors", paths[0], 0.25)
    assert (second.format, second.tensors) == ("safetensors", 4)
    assert second.dtypes == {"float32": 7 * 5 + 7 + 3 * 7, "int64": 1}


def test_what_several_outputs_read_together_is_counted_once(tmp_path):
    paths = series(tmp_path / "in")
    rows = [Row((0.5, 0.5), (0, 1)), Row((1 / 3, 1 / 3, 1 / 3), (0, 1, 2))]
    outputs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    reports = swavg.execute(swavg.prepare(paths, rows, outputs))
    sizes = sum(tensor.numel() * tensor.element_size() for tensor in state(1).values())
    floats = sizes - 8
    # The integers of the second row are its own.
    assert [report.read for report in reports] == [3 * floats + 2 * 8, 3 * 8]


def test_what_was_not_averaged_over_all_says_what_and_why(tmp_path):
    one = save(tmp_path / "1.safetensors", state(1, head=torch.ones(2)))
    two = save(tmp_path / "2.safetensors", state(2, head=torch.ones(3), more=torch.ones(1)))
    policy = Policy(strict=False, missing="average", exclude=("body.*",))
    report = swavg.average([one, two], output=tmp_path / "out.safetensors", policy=policy)
    assert {entry["name"]: (entry["action"], entry["reason"]) for entry in report.not_averaged} == {
        "body.weight": ("excluded", "copied from 2.safetensors"),
        "body.bias": ("excluded", "copied from 2.safetensors"),
        "head": ("copied", "from 2.safetensors: float32 [2] in 1.safetensors"),
        "more": ("copied", "from 2.safetensors: missing in 1.safetensors"),
    }
    assert report.tensors == {
        "averaged": 1, "integer": 1, "copied": 4, "dropped": 0, "excluded": 2,
    }  # fmt: skip


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38])
def test_a_report_is_json_whatever_the_values(tmp_path, value):
    paths = [
        save(tmp_path / f"{index}.safetensors", {"x": torch.tensor([value, 1.0 + index])})
        for index in range(2)
    ]
    policy = Policy(allow_nonfinite=True)
    report = swavg.average(paths, output=tmp_path / "out.safetensors", policy=policy)
    json.dumps(report.to_json(), allow_nan=False)


def test_running_statistics_are_named(tmp_path):
    norm = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    path = save(tmp_path / "a.safetensors", norm.state_dict())
    report = swavg.average([path, path], output=tmp_path / "out.safetensors")
    assert report.running_statistics == ("0.running_mean", "0.running_var")
    # A copy into another dtype is no average.
    policy = Policy(exclude=("*running_*",), dtype="float16")
    report = swavg.average([path, path], output=tmp_path / "copied.safetensors", policy=policy)
    assert report.running_statistics == ()
    report = swavg.average([path], output=tmp_path / "one.safetensors")
    assert report.running_statistics == ()
