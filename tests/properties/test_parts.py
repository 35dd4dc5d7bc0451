"""A plan is a value: its tasks run anywhere, in any order, in any number of parts."""

import pickle
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import make
import plans
import pytest
import torch
from checkpoints import save, series, state
from safetensors.torch import save_file

import swavg
from swavg import Policy, Row
from swavg.engine.executors import part

TESTS = Path(__file__).parent.parent


def safetensors(folder):
    return swavg.prepare(series(folder / "in"), [Row((0.5, 0.3, 0.2), (0, 1, 2))],
                         [folder / "out.safetensors"])  # fmt: skip


def torch_files(folder):
    paths = []
    for index in range(2):
        paths.append(folder / f"{index}.pt")
        turned = torch.randn(9, 7, generator=torch.Generator().manual_seed(index)).t()
        content = {"state_dict": state(index, turned=turned), "epoch": index,
                   "optimizer": {"m": torch.randn(50)}}  # fmt: skip
        torch.save(content, paths[-1])
    return paths


def torch_like_a_template(folder):
    return swavg.prepare(torch_files(folder), [Row((0.5, 0.5), (0, 1))], [folder / "out.pt"])


def torch_plain(folder):
    policy = Policy(weights_only=True, dtype="float64")
    row = Row((0.5, 0.5), (0, 1))
    return swavg.prepare(torch_files(folder), [row], [folder / "out.pt"], policy)


def torch_legacy(folder):
    paths = []
    for index in range(2):
        paths.append(folder / f"{index}.pth")
        torch.save(state(index), paths[-1], _use_new_zipfile_serialization=False)
    return swavg.prepare(paths, [Row((0.5, 0.5), (0, 1))], [folder / "out.pth"])


def shards(folder):
    paths = []
    for index in range(2):
        paths.append(folder / f"in-{index}")
        paths[-1].mkdir()
        save_file(state(index), paths[-1] / "model.safetensors", {"format": "pt"})
    policy = Policy(max_shard_size=100)
    return swavg.prepare(paths, [Row((0.5, 0.5), (0, 1))], [folder / "out"], policy)


def sweep(folder):
    """Rows that share their entries, of other weights and of some of the inputs."""
    rows = [Row((0.5, 0.5), (1, 2)), Row((0.2, 0.3, 0.5), (0, 1, 2)), Row((1.0,), (2,))]
    outputs = [folder / f"{index}.safetensors" for index in range(3)]
    return swavg.prepare(series(folder / "in"), rows, outputs)


def sweep_apart(folder):
    """Rows that share nothing, for their dtypes differ, or only a part."""
    paths = [
        save(folder / f"in-{index}.safetensors", tensors)
        for index, tensors in enumerate(
            (state(1), state(2), state(3, torch.float16, more=torch.arange(40.0)))
        )
    ]
    rows = [Row((0.5, 0.5), (0, 1)), Row((0.2, 0.3, 0.5), (0, 1, 2)), Row((1.0,), (2,))]
    outputs = [folder / f"{index}.safetensors" for index in range(3)]
    return swavg.prepare(paths, rows, outputs, Policy(strict=False))


def sweep_of_templates(folder):
    """Rows that keep bytes of their own last input."""
    rows = [Row((0.5, 0.5), (0, 1)), Row((1.0,), (0,))]
    return swavg.prepare(torch_files(folder), rows, [folder / "a.pt", folder / "b.pt"])


PLANS = [
    safetensors, torch_like_a_template, torch_plain, torch_legacy, shards, sweep, sweep_apart,
    sweep_of_templates,
]  # fmt: skip


@pytest.fixture(params=PLANS, ids=lambda make_plan: make_plan.__name__)
def plan(request, tmp_path):
    """A plan of many small tasks, and what ``execute`` makes of it."""
    made = replace(request.param(tmp_path), cut=64)
    swavg.execute(made)
    assert len(made.tasks()) > 10
    return made


def in_a_process(plan, folder, index, count, order):
    """Part ``index`` of ``count`` of the tasks in this order, by a process that has only the
    pickled plan."""
    path = folder / "plan"
    path.write_bytes(pickle.dumps(plan))
    numbers = ",".join(map(str, order))
    subprocess.run(
        [sys.executable, TESTS / "plans.py", path, folder, str(index), str(count), numbers],
        env={"PYTHONPATH": f"{TESTS}:{TESTS.parent}"}, check=True,
    )  # fmt: skip
    return pickle.loads((folder / f"results-{index}").read_bytes())


@pytest.mark.slow
def test_fresh_processes_do_parts_in_any_order(plan, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    order = list(plan.tasks())
    random.Random(0).shuffle(order)
    results = [
        result for index in range(3) for result in in_a_process(plan, folder, index, 3, order)
    ]
    random.Random(1).shuffle(results)
    plans.finish(plan, results, folder)
    assert plans.written(plan, folder) == plans.published(plan)


def test_a_part_does_every_nth_task(plan, tmp_path):
    for count in (2, 3):
        sinks = plans.open_sinks(plan, tmp_path)
        done = [
            [result.number for result in plans.results_of(plan, part(index, count), sinks)]
            for index in range(count)
        ]
        plans.close(sinks)
        assert done == [list(plan.tasks())[index::count] for index in range(count)]


def test_a_task_that_is_done_again_changes_nothing(plan, tmp_path):
    sinks = plans.open_sinks(plan, tmp_path)
    first = plans.results_of(plan, part(0, 1), sinks)
    again = plans.results_of(plan, part(0, 1), sinks, list(plan.tasks())[::2])
    plans.close(sinks)
    assert again == first[::2]
    plans.finish(plan, first, tmp_path)
    assert plans.written(plan, tmp_path) == plans.published(plan)


def test_a_task_that_is_missing_is_noticed(plan, tmp_path):
    sinks = plans.open_sinks(plan, tmp_path)
    results = plans.results_of(plan, part(0, 1), sinks)
    plans.close(sinks)
    with pytest.raises(AssertionError, match="tasks are missing"):
        plans.finish(plan, results[:-1], tmp_path)
    with pytest.raises(AssertionError, match="was done twice"):
        plans.finish(plan, [*results, results[3]], tmp_path)


def test_a_task_that_wrote_too_little_is_noticed(plan, tmp_path):
    """Space is reserved first: a hole would read as zeros."""
    sinks = plans.open_sinks(plan, tmp_path)
    results = plans.results_of(plan, part(0, 1), sinks)
    plans.close(sinks)
    largest = max(results, key=lambda result: result.written)
    largest.written -= 1
    with pytest.raises(AssertionError, match="bytes written"):
        plans.finish(plan, results, tmp_path)


def test_tasks_say_together_what_was_read_and_written(plan, tmp_path):
    sinks = plans.open_sinks(plan, tmp_path)
    tally = plans.finish(plan, plans.results_of(plan, part(0, 1), sinks), tmp_path)
    plans.close(sinks)
    assert tally.read == tally.total > 0
    assert tally.written == tally.planned
    assert make.debris(tmp_path) == []
