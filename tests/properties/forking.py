"""Run by test_one_answer.py in a process that may fork: threads and processes give the same bytes.

pytest's own process has torch, and threads, and so never forks workers.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import make
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import swavg
from swavg import Policy, Resources, Row
from swavg.dtypes import BY_SAFETENSORS

FOLDER = Path(sys.argv[1])
CHOICES = [
    Policy(strict=False, integers="last"),
    Policy(strict=False, integers="max", allow_nonfinite=True),
    Policy(strict=False, integers="mean", dtype="float32", allow_nonfinite=True),
]
ROWS = [
    Row((0.1, 0.7, 0.2), (0, 1, 2)), Row((0.5, 0.5), (1, 2)), Row((0.6, 0.4), (0, 2)),
]  # fmt: skip


def values(dtype, seed, numel):
    """Bytes of small floats of a dtype, or of any integers; codes are those of seed 1."""
    random = np.random.default_rng(1 if dtype.bits < 8 else seed)
    if dtype.bits < 8 or dtype.kind in ("integer", "bool"):
        top = 2 if dtype.kind == "bool" else 256
        return random.integers(0, top, dtype.nbytes(numel), np.uint8).tobytes()
    small = 0.1 + random.random(numel * dtype.itemsize // dtype.part.itemsize)
    return small.astype(dtype.part.numpy()).tobytes()


def checkpoint(seed):
    tensors = {}
    for code, dtype in sorted(BY_SAFETENSORS.items(), key=lambda item: -item[1].safetensors_rank):
        for name, shape in (("one", ()), ("wide", (61, 408)), ("none", (0, 3))):
            numel = int(np.prod(shape, dtype=np.int64))
            if numel * dtype.bits % 8 == 0:
                tensors[f"{dtype}.{name}"] = (code, shape, values(dtype, seed, numel))
    path = FOLDER / f"{seed}.safetensors"
    path.write_bytes(make.packed(tensors))
    return str(path)


PATHS = [checkpoint(seed) for seed in (1, 2, 3)]
forks = 0
system_fork = os.fork


def counted_fork():
    global forks
    forks += 1
    return system_fork()


def outputs(policy, suffix, several, resources, folder, cut=1 << 20):
    folder.mkdir(exist_ok=True)
    rows = ROWS if several else ROWS[:1]
    names = [folder / f"{at}{suffix}" for at in range(len(rows))]
    if suffix == ".pt":
        # What torch has no dtype for.
        policy = replace(policy, exclude=("float[46]_*",), drop_excluded=True)
    plan = replace(swavg.prepare(PATHS, rows, names, policy, force=True), cut=cut)
    reports = swavg.execute(plan, resources)
    return [
        (name.read_bytes(), report.differing_integers, report.nonfinite)
        for name, report in zip(names, reports, strict=True)
    ]


@given(
    workers=st.integers(2, 5),
    memory=st.integers(32 << 20, 64 << 20),
    cut=st.integers(1 << 12, 1 << 18),
    policy=st.sampled_from(CHOICES),
    suffix=st.sampled_from([".safetensors", ".pt"]),
    several=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def processes_give_the_bytes_of_threads(workers, memory, cut, policy, suffix, several):
    expected = outputs(policy, suffix, several, Resources(threads=1), FOLDER / "threads")
    before = forks
    forced = Resources(threads=workers, memory=memory, processes=True)
    assert outputs(policy, suffix, several, forced, FOLDER / "processes", cut) == expected
    assert forks > before


def distances_are_the_same():
    paths = []
    for seed in (1, 2, 3):
        path = FOLDER / f"large-{seed}.safetensors"
        make.arrays(path, x=np.random.default_rng(seed).standard_normal(3 << 20).astype("f4"))
        paths.append(path)
    found = [
        swavg.average(
            paths, output=FOLDER / "x.safetensors", force=True,
            resources=Resources(threads=3, processes=processes),
        )
        for processes in (False, True)
    ]  # fmt: skip
    assert found[0].inputs == found[1].inputs
    assert found[0].inputs[0].relative_distance is not None
    assert found[0].warnings == found[1].warnings


os.fork = counted_fork
processes_give_the_bytes_of_threads()
distances_are_the_same()
print("done", forks)
