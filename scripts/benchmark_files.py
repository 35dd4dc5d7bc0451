"""What the benchmarks run in processes of their own: make checkpoints, and do as others do.

``python scripts/benchmark_files.py JOB ARGUMENT...``
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

MIB = 1 << 20


def generate(job: str) -> None:
    """Write the checkpoints that a JSON file lists."""
    for spec in json.loads(Path(job).read_text()):
        write = write_pt if spec["path"].endswith(".pt") else write_safetensors
        write(Path(spec["path"]), spec["dtype"], spec["shapes"], spec["seed"], spec["turned"])


def write_safetensors(
    path: Path, dtype: str, shapes: dict[str, Sequence[int]], seed: int, turned: bool = False
) -> None:
    """Random normals x 0.02, in bounded memory."""
    import ml_dtypes
    import numpy as np

    element = np.dtype({"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}[dtype])
    header = header_of(shapes, dtype, element.itemsize)
    left = sum(map(math.prod, shapes.values()))
    rng = np.random.Generator(np.random.SFC64(seed))
    with path.open("wb") as file:
        file.write(header)
        while left > 0:
            values = rng.standard_normal(min(left, MIB), dtype=np.float32) * np.float32(0.02)
            file.write(values.astype(element).view(np.uint8))
            left -= len(values)


def header_of(shapes: dict[str, Sequence[int]], dtype: str, itemsize: int) -> bytes:
    entries: dict[str, object] = {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * itemsize
        entries[name] = {"dtype": dtype.upper(), "shape": shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_pt(
    path: Path, dtype: str, shapes: dict[str, Sequence[int]], seed: int, turned: bool
) -> None:
    """As torch.save writes a state dict under ``model``. ``turned``: what has two dimensions is
    stored column by column."""
    import torch

    element = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[dtype]
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = (torch.randn(*shape, generator=generator) * 0.02).to(element)
        state[name] = values.T.contiguous().T if turned and values.ndim == 2 else values
    torch.save({"model": state}, path)


def recipe(out: str, *paths: str) -> None:
    """The usual script: everything in memory."""
    import torch

    checkpoints = [torch.load(path, map_location="cpu")["model"] for path in paths]
    weight = 1 / len(paths)
    mean = {name: sum(c[name] * weight for c in checkpoints) for name in checkpoints[0]}
    torch.save({"model": mean}, out)


def lazy(out: str, *paths: str) -> None:
    """Tensor by tensor with the safetensors library."""
    from contextlib import ExitStack

    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    mean = {}
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        for name in files[0].keys():  # noqa: SIM118 - safe_open is no mapping
            first = files[0].get_tensor(name)
            total = first.to(torch.float32, copy=True)
            for file in files[1:]:
                total += file.get_tensor(name)
            mean[name] = (total / len(files)).to(first.dtype)
    save_file(mean, out)


def plan(folder: str, tensors: str, inputs: str) -> None:
    """Plan the mean of ``inputs`` checkpoints that have nothing but headers: prints what the plan
    holds in memory, its size as a pickle (both in bytes), and the seconds that pickling took."""
    import gc
    import pickle
    import time
    import tracemalloc

    import swavg

    # With the imports, a small plan first: neither counts.
    for count in (2, int(tensors)):
        paths = [str(Path(folder, f"{count}-{i:02}.safetensors")) for i in range(int(inputs))]
        shapes = {f"model.layers.{i:06}.weight": (8, 8) for i in range(count)}
        header = header_of(shapes, "bf16", 2)
        for path in paths:
            with open(path, "wb") as file:
                file.write(header)
                file.truncate(len(header) + 128 * count)
        row = swavg.Row((1 / len(paths),) * len(paths), tuple(range(len(paths))))
        gc.collect()
        tracemalloc.start()
        made = swavg.prepare(paths, [row], [str(Path(folder, "out.safetensors"))])
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        begun = time.perf_counter()
        pickled = pickle.dumps(made)
        seconds = time.perf_counter() - begun
    print(held, len(pickled), seconds)


def list_ranges(listed: str, *urls: str) -> None:
    """Write what the tasks of an average read of objects, as [name, start, stop] in their order."""
    import swavg
    from swavg.engine.ahead import ranges_of
    from swavg.storage.fetching import joined

    row = swavg.Row((1 / len(urls),) * len(urls), tuple(range(len(urls))))
    plan = swavg.prepare(urls, [row], [f"{listed}.safetensors"])
    found = []
    for number in plan.tasks():
        own: dict[str, list[tuple[int, int]]] = {}
        for source, start, stop in ranges_of(plan, number):
            own.setdefault(source.name, []).append((start, stop))
        found += [(name, *ends) for name, parts in own.items() for ends in joined(parts)]
    Path(listed).write_text(json.dumps(found))


def ranges(listed: str, endpoint: str, out: str, connections: str) -> None:
    """Read these ranges with so many connections, and nothing else; write those of the first
    object."""
    import threading
    from http.client import HTTPConnection
    from urllib.parse import urlsplit

    found = json.loads(Path(listed).read_text())
    lock, wanted = threading.Lock(), iter(found)
    room = max(stop - start for _, start, stop in found)

    def work() -> None:
        connection = HTTPConnection(urlsplit(endpoint).netloc)
        buffer = memoryview(bytearray(room))
        signed = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request"
        while True:
            with lock:
                name, start, stop = next(wanted, ("", 0, 0))
            if not name:
                return
            part, done = buffer[: stop - start], 0
            headers = {"Range": f"bytes={start}-{stop - 1}", "Authorization": signed}
            connection.request("GET", name.removeprefix("s3:/"), headers=headers)
            answer = connection.getresponse()
            while done < len(part):
                count = answer.readinto(part[done:])
                assert count, f"{answer.status} {answer.reason}"
                done += count
            answer.read()
            if name == found[0][0]:
                os.pwrite(file, part, start)

    file = os.open(out, os.O_WRONLY | os.O_CREAT)
    workers = [threading.Thread(target=work) for _ in range(int(connections))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def ray(times: str, program: str, out: str, *inputs: str) -> None:
    """Average with a ``program`` on this machine, and on a Ray cluster of two nodes with a
    processor each, ``times`` times: prints for each the seconds of the one, of the other, and those
    from the second task's end to the last's. SystemExit if one machine makes other bytes."""
    import filecmp
    import subprocess
    import time

    from ray.cluster_utils import Cluster

    import swavg

    node = {"num_cpus": 1, "object_store_memory": 80 * MIB}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        cluster.add_node(**node)
        there = swavg.Resources(engine="ray", address=cluster.address)
        for _ in range(int(times)):
            begun = time.perf_counter()
            subprocess.run([program, "average", *inputs, "-o", out, "--force", "-q"], check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip
            alone = time.perf_counter() - begun
            os.sync()
            ends: list[float] = []
            begun = time.perf_counter()
            swavg.average(
                inputs,
                output=out,
                resources=there,
                force=True,
                on_progress=lambda _, ends=ends: ends.append(time.perf_counter()),
            )
            # The first is told before any task.
            print(alone, time.perf_counter() - begun, ends[-1] - ends[2], flush=True)
            os.sync()
    finally:
        cluster.shutdown()
    local = f"{out}.local"
    swavg.average(inputs, output=local)
    if not filecmp.cmp(local, out, shallow=False):
        sys.exit("Ray makes other bytes.")


JOBS: dict[str, Callable[..., None]] = {
    "generate": generate,
    "recipe": recipe,
    "lazy": lazy,
    "list_ranges": list_ranges,
    "ranges": ranges,
    "plan": plan,
    "ray": ray,
}

if __name__ == "__main__":
    JOBS[sys.argv[1]](*sys.argv[2:])
