"""Constant memory: the promise of 96 MiB, on files larger than that."""

import json
import re
import struct
import subprocess
import sys

import pytest

MIB = 1 << 20
PROMISE = 96 * MIB

# The peak of this very process image; the parent's (pytest with torch) must not count.
MEASURED = """
import re, sys
from swavg.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code, stop.code
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1], file=sys.stderr)
"""


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


def peak(*args):
    """Bytes resident at most during a run of the command line."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(re.findall(r"^(\d+)$", done.stderr, re.MULTILINE)[-1]) * 1024


@pytest.mark.parametrize(("dtype", "itemsize"), [("BF16", 2), ("F32", 4), ("F16", 2)])
def test_one_tensor_larger_than_the_promise_is_averaged_within_it(tmp_path, dtype, itemsize):
    paths = [
        sparse(tmp_path / f"{i}.safetensors", [128 * MIB // itemsize], dtype, itemsize)
        for i in range(2)
    ]
    assert peak("average", *paths, "-o", tmp_path / "out.safetensors", "-q") <= PROMISE


def test_memory_is_the_same_for_one_and_for_twenty_inputs(tmp_path):
    paths = [
        sparse(tmp_path / f"{i:02}.safetensors", [8 * MIB] * 4 + [1000] * 200) for i in range(20)
    ]
    out = tmp_path / "out.safetensors"
    one = peak("average", paths[0], "-o", out, "--force", "-q")
    twenty = peak("average", *paths, "-o", out, "--force", "-q")
    assert twenty <= PROMISE
    assert twenty - one <= 8 * MIB


def test_sixty_four_threads_stay_within_the_promise(tmp_path):
    paths = [sparse(tmp_path / f"{i}.safetensors", [64 * MIB], "F32", 4) for i in range(2)]
    out = tmp_path / "out.safetensors"
    assert peak("average", *paths, "-o", out, "--threads", "64", "-q") <= PROMISE


def test_streaming_to_a_pipe_takes_no_more(tmp_path):
    paths = [sparse(tmp_path / f"{i}.safetensors", [64 * MIB]) for i in range(2)]
    with open("/dev/null", "wb") as nowhere:
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, "average", *paths, "-o", "-", "-q"],
            stdout=nowhere,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
            check=True,
        )
    assert int(done.stderr.split()[-1]) * 1024 <= PROMISE
