"""One answer: chunks, workers, executors, device and memory never change a bit."""

import os
import random
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import plans
import pytest
import torch
from checkpoints import load, planned, save, state
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import swavg
from swavg import Policy, Resources, Row
from swavg.engine.executors import part, threads

TESTS = Path(__file__).parent.parent
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64]
RELAXED = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LAST = Policy(integers="last")
LEAST = 1 << 19
"""Memory with which all plans here do, in small blocks."""


def tensors(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    big = torch.randn(123, 457, generator=generator).to(dtype)
    turned = torch.randn(31, 17, generator=generator).to(dtype).t()
    return {"big": big, "turned": turned, "none": big[:0], "one": big[0, 0],
            "n": torch.arange(seed, 3000 + seed), "small": big[0]}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three checkpoints of each dtype, as safetensors and as PyTorch files."""
    found = {}
    for dtype in DTYPES:
        folder = tmp_path_factory.mktemp(str(dtype))
        for seed in (1, 2, 3):
            save(folder / f"{seed}.safetensors", tensors(seed, dtype))
            torch.save(tensors(seed, dtype), folder / f"{seed}.pt")
        found[dtype] = folder
    return found


def paths_of(folder, suffix):
    return [folder / f"{seed}{suffix}" for seed in (1, 2, 3)]


@pytest.mark.slow
@given(
    cut=st.integers(1000, 300_000) | st.just(1 << 30),
    workers=st.integers(1, 5),
    memory=st.integers(LEAST, 4 * LEAST),
    device=st.sampled_from(["cpu", "torch"]),
    weights=st.sampled_from([None, (0.1, 0.7, 0.2)]),
    dtype=st.sampled_from(DTYPES),
    suffix=st.sampled_from([".safetensors", ".pt"]),
)
@RELAXED
def test_chunks_workers_memory_and_kernel_never_change_a_bit(
    files, cut, workers, memory, device, weights, dtype, suffix
):
    folder = files[dtype]
    reference = folder / f"reference-{weights is None}{suffix}"
    if not reference.exists():
        paths = paths_of(folder, suffix)
        swavg.average(paths, weights, output=reference, policy=LAST, resources=plans.ALONE)
    out = folder / f"out{suffix}"
    plan = planned(paths_of(folder, suffix), out, weights, LAST, cut=cut, force=True)
    swavg.execute(plan, Resources(device, workers, memory))
    assert out.read_bytes() == reference.read_bytes()


@pytest.mark.slow
@given(
    cut=st.integers(2000, 50_000),
    parts=st.integers(1, 4),
    count=st.integers(1, 4),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(DTYPES),
    suffix=st.sampled_from([".safetensors", ".pt"]),
)
@RELAXED
def test_parts_and_threads_make_the_same_bytes(files, cut, parts, count, seed, dtype, suffix):
    out = files[dtype] / f"out{suffix}"
    rows = [Row((0.3, 0.3, 0.4), (0, 1, 2)), Row((0.5, 0.5), (1, 2))]
    outputs = [out, out.with_stem("second")]
    plan = swavg.prepare(paths_of(files[dtype], suffix), rows, outputs, LAST, force=True)
    plan = replace(plan, cut=cut)
    swavg.execute(plan)
    with tempfile.TemporaryDirectory() as folder:
        assert plans.made_by(threads(count), plan, folder) == plans.published(plan)
    with tempfile.TemporaryDirectory() as folder:
        sinks = plans.open_sinks(plan, folder)
        order = list(plan.tasks())
        random.Random(seed).shuffle(order)
        results = [
            result
            for index in range(parts)
            for result in plans.results_of(plan, part(index, parts), sinks, order)
        ]
        plans.close(sinks)
        plans.finish(plan, results, folder)
        assert plans.written(plan, folder) == plans.published(plan)


@given(
    n=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 10_000),
    suffix=st.sampled_from([".safetensors", ".pt"]),
)
@RELAXED
def test_equal_checkpoints_return_themselves(tmp_path, n, dtype, seed, suffix):
    made = tensors(seed, dtype) | {"huge": torch.full((3,), torch.finfo(dtype).max, dtype=dtype)}
    path, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    if suffix == ".pt":
        torch.save(made, path)
    else:
        save(path, made)
    swavg.average([path] * n, output=out, force=True)
    found = torch.load(out) if suffix == ".pt" else load(out)
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype


@st.composite
def rows_of_three(draw):
    members = draw(st.sets(st.integers(0, 2), min_size=1))
    weights = draw(st.lists(st.floats(-1, 1), min_size=len(members), max_size=len(members)))
    total = sum(weights)
    if abs(total) < 0.1 or draw(st.booleans()):
        return Row((1 / len(members),) * len(members), tuple(sorted(members)))
    return Row(tuple(weight / total for weight in weights), tuple(sorted(members)))


@pytest.mark.slow
@given(
    rows=st.lists(rows_of_three(), min_size=2, max_size=5),
    policy=st.sampled_from([Policy(strict=False), Policy(strict=False, dtype="float32"),
                            Policy(strict=False, missing="average", integers="max"),
                            Policy(strict=False, exclude=("b*",), drop_excluded=True)]),
    odd=st.sampled_from([None, "dtype", "missing", "shape"]),
    suffix=st.sampled_from([".safetensors", ".pt"]),
)  # fmt: skip
@RELAXED
def test_rows_made_together_equal_rows_made_alone(tmp_path_factory, rows, policy, odd, suffix):
    folder = tmp_path_factory.mktemp("rows")
    for index in range(3):
        made = state(index, torch.bfloat16, big=torch.randn(70, 30))
        if odd and index == 1:
            change = {"dtype": made["head.weight"].float(), "missing": None,
                      "shape": torch.ones(5)}[odd]  # fmt: skip
            made["head.weight"] = change
            if change is None:
                del made["head.weight"]
        torch.save(made, folder / f"{index}.pt")
        save(folder / f"{index}.safetensors", made)
    paths = [folder / f"{index}{suffix}" for index in range(3)]
    together = [folder / f"out-{at}{suffix}" for at in range(len(rows))]
    swavg.execute(swavg.prepare(paths, rows, together, policy))
    for at, (row, path) in enumerate(zip(rows, together, strict=True)):
        alone = folder / f"alone-{at}{suffix}"
        inputs = [paths[member] for member in row.members]
        single = Row(row.weights, tuple(range(len(inputs))))
        swavg.execute(swavg.prepare(inputs, [single], [alone], policy))
        assert path.read_bytes() == alone.read_bytes()


@pytest.mark.slow
def test_processes_give_the_bytes_and_findings_of_threads_for_every_dtype(tmp_path):
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "forking.py", tmp_path],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1",
             "PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 40
