"""The scripts that print the tables of the pages run, at tiny size, so that they never rot."""

import subprocess
import sys

import pytest
from pages import ROOT

# The table that each prints, as its first column and number of rows.
BENCHMARKS = {
    "benchmark --size 100KB --repeat 1 --only limit swavg sweep four-runs": ("swavg", 4),
    "benchmark --size 100KB --repeat 1 --format pt --tensors 20 --only limit swavg recipe": (
        "recipe",
        3,
    ),
    "benchmark --size 1MB --tensors 4 --repeat 1 --convert dcp": ("plain", 3),
    "benchmark --size 1MB --tensors 4 --repeat 1 --s3": ("swavg", 2),
    "benchmark --size 4MB --repeat 1 --ray": ("the rest, later", 4),
    "benchmark-targets --shrink 10000 --repeat 1 --only bf16 pt four peak plan many transposed tiny"
    " lines": ("two tiny files", 14),
    "benchmark-ema --model many --repeat 1": ("swavg applied", 4),
    "numerics --quick": ("bfloat16", 20),
    "batch-norm --quick --seeds 1": ("0.02", 3),
}


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("line", BENCHMARKS)
def test_a_benchmark_prints_its_table(line, tmp_path):
    first, rows = BENCHMARKS[line]
    name, *options = line.split()
    if name in ("benchmark", "benchmark-targets"):
        options += ["--dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / name, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Below the head and the rule.
    table = [each for each in done.stdout.splitlines() if each.startswith("| ")][1:]
    assert len(table) == rows, done.stdout
    assert f"| {first} |" in done.stdout
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("swavg-benchmark-")]
