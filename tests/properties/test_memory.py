"""Constant memory: the promise of 96 MiB, on files larger than that."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import make
import numpy as np
import pytest
from command_line import children
from orbax_folders import write_array

pytestmark = [pytest.mark.alone, pytest.mark.slow]

MIB = 1 << 20
PROMISE = 96 * MIB


def promise(workers):
    """96 MiB with up to 8 workers, 4 MiB more for each further one."""
    return PROMISE + 4 * MIB * max(0, workers - 8)


def sparse(path, shapes, dtype="BF16", itemsize=2):
    """A valid safetensors file of zeros that takes no room on the disk."""
    entries, position = {}, 0
    for index, elements in enumerate(shapes):
        end = position + elements * itemsize
        entries[f"layer.{index}.weight"] = {
            "dtype": dtype,
            "shape": [elements],
            "data_offsets": [position, end],
        }
        position = end
    header = json.dumps(entries).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + position)
    return str(path)


def kilobytes(pid, file, fields):
    try:
        text = Path(f"/proc/{pid}/{file}").read_text()
    except OSError:
        return 0
    return sum(map(int, re.findall(rf"^(?:{fields}):\s+(\d+) kB", text, re.MULTILINE)))


@contextlib.contextmanager
def stopped(pid):
    """A process and all below it, which stand still: what they share is counted once only if
    nobody comes or goes meanwhile."""
    pids = [pid]
    try:
        for each in pids:
            send(each, signal.SIGSTOP)
            wait_for_stop(each)
            pids += children(each)
        yield pids
    finally:
        for each in pids:
            send(each, signal.SIGCONT)


def wait_for_stop(pid):
    """Until a process stands still: a signal takes its time, and one that ends gives its memory
    back before it is gone."""
    for _ in range(10_000):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        except OSError:
            return
        if state in "TZX":
            return
        time.sleep(0.0001)
    raise AssertionError(f"process {pid} does not stop")


def send(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def together(pid):
    """Bytes of a process and all below it: own and shared memory, each page once, and the program
    files of the largest (which strangers share too)."""
    with stopped(pid) as pids:
        own = sum(kilobytes(each, "smaps_rollup", "Pss_Anon|Pss_Shmem") for each in pids)
        files = max(kilobytes(each, "status", "RssFile") for each in pids)
    return 1024 * (own + files), len(pids)


def watched(*args):
    """Bytes that a run of the command line and its workers have at most, and how many processes
    they are."""
    process = subprocess.Popen(
        [sys.executable, "-m", "swavg", *map(str, args)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    found, processes = 0, 0
    try:
        while process.poll() is None:
            size, count = together(process.pid)
            found, processes = max(found, size), max(processes, count)
            time.sleep(0.005)
        assert process.returncode == 0, process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    assert found > 20 * MIB
    return found, processes


def peak(*args):
    """Bytes that a run of the command line has at most, all its processes together."""
    return watched(*args)[0]


@pytest.mark.parametrize(("dtype", "itemsize"), [("BF16", 2), ("F32", 4), ("F16", 2)])
def test_one_tensor_larger_than_the_promise_is_averaged_within_it(tmp_path, dtype, itemsize):
    paths = [
        sparse(tmp_path / f"{i}.safetensors", [128 * MIB // itemsize], dtype, itemsize)
        for i in range(2)
    ]
    out = tmp_path / "out.safetensors"
    size, processes = watched("average", *paths, "-o", out, "--threads", "2", "-q")
    assert size <= PROMISE
    assert processes == 3


def test_memory_is_the_same_for_one_and_for_twenty_inputs(tmp_path):
    paths = [
        sparse(tmp_path / f"{i:02}.safetensors", [8 * MIB] * 4 + [1000] * 200) for i in range(20)
    ]
    out = tmp_path / "out.safetensors"
    one = peak("average", paths[0], "-o", out, "--force", "-q")
    twenty = peak("average", *paths, "-o", out, "--force", "-q")
    assert twenty <= PROMISE
    assert twenty - one <= 8 * MIB


@pytest.mark.parametrize("workers", [8, 64])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_many_workers_stay_within_the_promise(tmp_path, dtype, workers):
    paths = [sparse(tmp_path / f"{i}.safetensors", [64 * MIB], "F32", 4) for i in range(2)]
    out = tmp_path / "out.safetensors"
    size, processes = watched(
        "average", *paths, "-o", out, "--threads", workers, "--dtype", dtype, "-q"
    )
    assert size <= promise(workers)
    assert processes > workers / 3


@pytest.mark.parametrize("workers", [8, 64])
def test_many_tensors_and_outputs_stay_within_the_promise(tmp_path, workers):
    paths = [
        sparse(tmp_path / f"step-{i}.safetensors", [4 * MIB] * 8 + [1000] * 5000) for i in range(4)
    ]
    recipes = ["uniform", "uniform:last=2", "uniform:last=3", "ema:decay=0.5"]
    given = [part for recipe in recipes for part in ("-r", recipe)]
    size, processes = watched(
        "sweep", *paths, *given, "-d", tmp_path / "out", "--threads", workers, "-q"
    )
    assert size <= promise(workers)
    assert processes > 2


@pytest.mark.parametrize("workers", [8, 64])
def test_values_that_every_worker_must_repair_stay_within_the_promise(tmp_path, workers):
    data = b"\x80\xff" * (32 * MIB)
    paths = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for path in paths:
        path.write_bytes(make.packed({"x": ("BF16", [32 * MIB], data)}))
    size, processes = watched(
        "average", *paths, "-o", tmp_path / "out.safetensors", "--threads", workers, "-q"
    )
    assert size <= promise(workers)
    assert processes > 2


def test_pytorch_files_of_many_tensors_stay_within_the_promise(tmp_path):
    import torch

    zeros = torch.zeros(2 * MIB)
    for index in range(3):
        tensors = {f"layer.{i}.weight": zeros[i : i + 500].clone() for i in range(5000)}
        turned = torch.zeros(4000, 3000).t()
        torch.save({"state_dict": tensors | {"big": zeros, "turned": turned}, "epoch": index},
                   tmp_path / f"{index}.pt")  # fmt: skip
    paths = sorted(tmp_path.glob("*.pt"))
    assert peak("average", *paths, "-o", tmp_path / "out.pt", "--threads", "8", "-q") <= PROMISE


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("dcp/test_format.py", "TestDistributed"),
        ("dcp/test_hf_shards.py", "TestShards"),
        ("flax/test_flax.py", "TestFlax"),
        ("keras/test_keras.py", "TestArchive"),
        ("npz/test_npz.py", "TestDeflated"),
        ("test_tensorflow.py", "TestTensorFlow"),
        ("zero/test_opened.py", "TestZero"),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_other_formats_stay_within_the_promise(tmp_path, file, name):
    location = Path(__file__).parents[1] / "formats" / file
    spec = importlib.util.spec_from_file_location(f"suite_{name}", location)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    suite = getattr(module, name)()
    paths = [tmp_path / f"{number}{suite.suffix}" for number in range(2)]
    for number, path in enumerate(paths):
        values = np.random.default_rng(number).standard_normal((32 << 10, 1024), np.float32)
        suite.write(path, {"w": values, "b": values[0]})
    assert values.nbytes > PROMISE
    assert peak("average", *paths, "-o", tmp_path / "out", "--threads", "2", "-q") <= PROMISE


def test_streaming_to_a_pipe_takes_no_more(tmp_path):
    paths = [sparse(tmp_path / f"{i}.safetensors", [64 * MIB]) for i in range(2)]
    assert peak("average", *paths, "-o", "-", "-q") <= PROMISE


def test_compressed_chunks_take_no_more_for_six_inputs_than_for_two(tmp_path):
    row = 20 * MIB
    for number in range(6):
        values = np.random.default_rng(number).standard_normal(5 * row // 8, np.float32)
        write_array(tmp_path / f"{number}", values, (row // 4,))
    paths = sorted(tmp_path.iterdir())
    for count in (2, 6):
        assert peak("average", *paths[:count], "-o", tmp_path / f"{count}.st") <= PROMISE + row
