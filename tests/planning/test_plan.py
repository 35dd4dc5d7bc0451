"""Tasks by arithmetic: each element of each region belongs to one of them, whatever the cut."""

import math
import pickle
from dataclasses import replace

import make
import numpy as np
import pytest
import torch
from checkpoints import planned, save, state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import swavg
from swavg import Policy, Row
from swavg.dtypes import BY_SAFETENSORS

RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CODES = ["F4", "F6_E2M3", "U8", "BF16", "F32", "C64"]


def plan_of(folder, shapes, cut):
    """A plan of tensors given by their codes and numbers of elements."""
    tensors = {}
    for index, (code, numel) in enumerate(shapes):
        dtype = BY_SAFETENSORS[code]
        count = numel * 8 if dtype.bits < 8 else numel
        tensors[f"t{index}"] = (code, (count,), bytes(dtype.nbytes(count)))
    path = folder / "in.safetensors"
    path.write_bytes(make.packed(tensors))
    return planned([path], folder / "out.safetensors", policy=Policy(strict=False), cut=cut)


def spans(plan):
    return [span for number in plan.tasks() for span in plan.spans(plan.task(number))]


@pytest.mark.slow
@given(
    shapes=st.lists(
        st.tuples(st.sampled_from(CODES), st.integers(0, 3) | st.integers(0, 40)), max_size=6
    ),
    cut=st.integers(1, 400),
)
@settings(RELAXED, max_examples=300)
def test_every_element_belongs_to_one_task(tmp_path, shapes, cut):
    plan = plan_of(tmp_path, [("F32", 3), *shapes], cut)
    seen = {entry: [] for entry in range(len(plan.entries))}
    for span in spans(plan):
        seen[span.entry].append((span.start, span.stop))
    for entry, parts in seen.items():
        total = math.prod(plan.entries.forms[plan.entries.form[entry]][0])
        # End to end, in order, without holes.
        assert [start for start, _ in parts] == [0, *(stop for _, stop in parts)][: len(parts)]
        assert (parts[-1][1] if parts else 0) == total


@pytest.mark.parametrize("order", ["xe", "ex"])
def test_an_element_beside_an_empty_tensor_is_made_once_wherever_the_cut_is(tmp_path, order):
    """Both begin at the same byte, whichever comes first in the input."""
    tensors = {name: ("F32", (4,), bytes(16)) if name == "x" else ("F32", (0, 2), b"")
               for name in order}  # fmt: skip
    (tmp_path / "in.safetensors").write_bytes(make.packed(tensors))
    plan = planned([tmp_path / "in.safetensors"], tmp_path / "out.safetensors")
    for cut in range(1, plan.outputs[0].size + 1):
        parts = [(span.start, span.stop) for span in spans(replace(plan, cut=cut))]
        assert [at for start, stop in parts for at in range(start, stop)] == [0, 1, 2, 3], cut


@given(cut=st.integers(1, 400), shapes=st.lists(st.sampled_from(CODES), min_size=1, max_size=5))
@RELAXED
def test_a_task_makes_about_as_many_bytes_as_the_cut(tmp_path, cut, shapes):
    plan = plan_of(tmp_path, [("F32", 3), *((code, 30) for code in shapes)], cut)
    for number in plan.tasks():
        made = sum(
            plan.entries.operations[plan.entries.operation[span.entry]].dtype.nbytes(
                span.stop - span.start
            )
            for span in plan.spans(plan.task(number))
        )
        # An element that begins before the end is the task's.
        assert made < cut + 16


def test_the_number_of_tasks_is_that_of_the_cuts_of_all_files(tmp_path):
    paths = [save(tmp_path / f"{i}.safetensors", state(i)) for i in range(2)]
    rows = [Row((0.5, 0.5), (0, 1))] * 2
    outputs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    plan = replace(swavg.prepare(paths, rows, outputs), cut=100)
    # The second makes nothing of its own: its entries are made with the first's.
    assert len(plan.tasks()) == -(-plan.outputs[0].size // 100)
    assert {plan.task(number).row for number in plan.tasks()} == {0}


def test_a_tensor_that_only_one_row_has_is_in_that_rows_tasks(tmp_path):
    x, y = torch.ones(3), torch.zeros(3)
    first = save(tmp_path / "0.safetensors", {"x": x})
    second = save(tmp_path / "1.safetensors", {"x": y, "more": torch.ones(50)})
    rows = [Row((1.0,), (0,)), Row((0.5, 0.5), (0, 1))]
    outputs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    plan = swavg.prepare([first, second], rows, outputs, Policy(strict=False))
    own = [span for n in plan.tasks() if plan.task(n).row == 1 for span in plan.spans(plan.task(n))]
    assert [plan.name(1, span.entry) for span in own] == ["more"]


def rows_share(folder, states, rows, policy=None):
    """How many entries there are for how many tensors of the outputs."""
    paths = [save(folder / f"{i}.safetensors", tensors) for i, tensors in enumerate(states)]
    outputs = [folder / f"out-{i}.safetensors" for i in range(len(rows))]
    plan = swavg.prepare(paths, rows, outputs, policy)
    return len(plan.entries), sum(len(file.entries) for o in plan.outputs for file in o.files)


def test_rows_share_the_entries_that_are_made_alike(tmp_path):
    rows = [Row((0.5, 0.5), (0, 1)), Row((0.2, 0.8), (1, 2)), Row((0.1, 0.2, 0.7), (0, 1, 2))]
    assert rows_share(tmp_path, [state(i) for i in range(3)], rows) == (4 + 2, 12)


@pytest.mark.parametrize("odd", ["dtype", "accumulate"])
def test_what_one_row_alone_would_make_otherwise_is_not_shared(tmp_path, odd):
    x = torch.ones(4)
    states = [{"x": x.bfloat16()}, {"x": x.bfloat16()}, {"x": x if odd == "dtype" else x.half()}]
    rows = [Row((0.5, 0.5), (0, 1)), Row((0.5, 0.5), (2, 0) if odd == "x" else (0, 2))]
    shared = 1 if odd == "accumulate" else 2
    assert rows_share(tmp_path, states, rows, Policy(strict=False)) == (shared, 2)


def test_integers_are_shared_only_by_rows_of_the_same_inputs(tmp_path):
    states = [{"x": torch.ones(2), "n": torch.tensor([i])} for i in range(3)]
    same = [Row((0.5, 0.5), (0, 1))] * 2
    other = [Row((0.5, 0.5), (0, 1)), Row((0.5, 0.5), (1, 2))]
    assert rows_share(tmp_path / "same", states, same) == (2, 4)
    assert rows_share(tmp_path / "other", states, other) == (3, 4)


def test_a_plan_of_many_tensors_is_small(tmp_path):
    count = 2000
    tensors = {f"layers.{i}.weight": np.full((2,), i, np.float32) for i in range(count)}
    paths = [make.arrays(tmp_path / f"{i}.safetensors", **tensors) for i in range(20)]
    one = planned(paths[:1], tmp_path / "out.safetensors")
    all_inputs = planned(paths, tmp_path / "out.safetensors")
    sizes = [len(pickle.dumps(plan)) for plan in (one, all_inputs)]
    names = sum(map(len, tensors))
    # 150 bytes a tensor and output are promised; inputs of one run add next to nothing: a path,
    # and what the recipe tells of it.
    assert sizes[0] <= 150 * count + names
    assert sizes[1] - sizes[0] <= 20 * 530


def test_an_entry_knows_its_name_in_each_row(tmp_path):
    plan = planned([save(tmp_path / "a.safetensors", state(1))], tmp_path / "out.safetensors")
    names = {plan.name(0, entry) for entry in range(len(plan.entries))}
    assert names == set(state(1))
