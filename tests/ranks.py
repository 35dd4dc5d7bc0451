"""Code that runs as several ranks of one distributed job, on this machine."""

import os
import subprocess
import sys

BEGIN = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
rank, folder, world_size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
store = f"file://{folder}/store{world_size}"
dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
"""
END = """
dist.barrier()
dist.destroy_process_group()
sys.stdout.flush()
# Threads of gloo may still hold tensors; as the interpreter ends, torch then aborts the process.
os._exit(0)
"""


def ranks(code, folder, count=2):
    """Run ``code`` in ``count`` processes of one gloo group; what each printed. In it ``rank``,
    ``folder`` and ``world_size`` are known."""
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                BEGIN + code + END,
                str(rank),
                str(folder),
                str(count),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(count)
    ]
    try:
        results = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, results, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in results]
