"""What tasks say that they will read of objects is what they read."""

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import planned, save, series, state
from make import sharded

from swavg.engine.ahead import FETCHED, cut_of, ranges_of, read_for_one
from swavg.storage.fetching import joined

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

MIB = 1 << 20


def told(plan):
    """The ranges of all tasks, by source: those that touch as one, none twice."""
    found = {}
    for number in plan.tasks():
        for source, start, stop in ranges_of(plan, number):
            found.setdefault(source.name, []).append((start, stop))
    for ranges in found.values():
        assert sum(b - a for a, b in ranges) == sum(b - a for a, b in joined(ranges, gap=0))
    return {name: [*joined(ranges, gap=0)] for name, ranges in found.items()}


@pytest.mark.parametrize("cut", [64, 100, MIB])
def test_all_of_the_tensors_is_told_once(cut, tmp_path):
    paths = series(tmp_path)
    plan = planned(paths, tmp_path / "out.safetensors", cut=cut)
    ends = {each.path: [(each.tensors.base, each.sources[0].size)] for each in plan.checkpoints}
    assert told(plan) == ends


@pytest.mark.parametrize("cut", [64, MIB])
def test_shards_and_boxes_are_told(cut, tmp_path):
    shards = {f"{n}.safetensors": {f"w{n}": np.ones((20, 30), np.float32)} for n in (1, 2)}
    paths = [sharded(tmp_path / name, shards) for name in "ab"]
    plan = planned(paths, tmp_path / "out", cut=cut)
    sizes = {file.name: 2400 for each in plan.checkpoints for file in each.sources}
    assert {name: sum(b - a for a, b in own) for name, own in told(plan).items()} == sizes
    for name in "cd":
        dcp.save({"w": torch.ones(20, 30)}, checkpoint_id=tmp_path / name, no_dist=True)
    plan = planned([str(tmp_path / name) for name in "cd"], tmp_path / "o.safetensors", cut=cut)
    assert [sum(b - a for a, b in own) for own in told(plan).values()] == [2400, 2400]


def test_what_has_to_be_gathered_is_not_told(tmp_path):
    for name, number in (("a.pt", 1), ("b.pt", 2)):
        tensors = {"w": torch.ones(20, 30), "v": torch.ones(7)}
        if number == 2:
            tensors["w"] = torch.ones(30, 20).t()
        torch.save(tensors, tmp_path / name)
    plan = planned([str(tmp_path / name) for name in ("a.pt", "b.pt")], tmp_path / "out.pt")
    sums = {name[-4:]: sum(b - a for a, b in own) for name, own in told(plan).items()}
    # The output is as the last one is, and has some bytes of it as they are.
    assert sums["a.pt"] == 28
    assert sums["b.pt"] >= 2428


@pytest.mark.parametrize(
    ("count", "dtype", "ratio", "cut"),
    [
        (2, torch.bfloat16, 2, 4 * MIB),
        (8, torch.bfloat16, 8, MIB),
        (24, torch.float32, 24, MIB // 4),
        (100, torch.float16, 100, MIB // 8),
    ],
)
def test_a_task_reads_about_as_much_whatever_the_inputs(count, dtype, ratio, cut, tmp_path):
    more = {"steps": torch.tensor(1.0, dtype=dtype)}
    path = save(tmp_path / "a.safetensors", state(1, dtype, **more))
    plan = planned([path] * count, tmp_path / "out.safetensors")
    assert read_for_one(plan.entries) == ratio
    assert cut_of(plan.entries) == cut
    assert cut * ratio <= 3 * FETCHED
