"""What scripts/benchmark and scripts/benchmark-targets share: checkpoints, and timing processes.

Imports nothing large: on Linux the peak that is reported for a child is at least the size of the
process that started it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv" / "bin" / "python"
PYTHON = VENV if VENV.exists() else Path(sys.executable)
SWAVG = PYTHON.parent / "swavg"
ITEM_BYTES = {"bf16": 2, "f16": 2, "f32": 4}
MIB, GIB = 1 << 20, 1 << 30
SAMPLE_SECONDS = 0.005
Shapes = dict[str, tuple[int, ...]]
Command = Sequence[str]
Result = TypeVar("Result")


def job(name: str, *arguments: object) -> list[str]:
    """The command of a job of benchmark_files.py."""
    return [
        str(PYTHON),
        str(Path(__file__).with_name("benchmark_files.py")),
        name,
        *map(str, arguments),
    ]


# ---- Checkpoints.


def language_model(elements: int) -> Shapes:
    """Names and shapes like those of a decoder, with exactly this many elements in all."""
    # Embedding and head are 32 w^2 elements, a layer is 12 w^2: some 10 to 40 layers fit.
    width = 1 << max(3, min(12, int(math.log2(max(1, elements / 150)) / 2)))
    inner, vocabulary = width * 8 // 3, width * 16
    layer = {
        "input_layernorm.weight": (width,),
        **{f"self_attn.{name}_proj.weight": (width, width) for name in "qkvo"},
        "post_attention_layernorm.weight": (width,),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }
    shapes: Shapes = {
        "model.embed_tokens.weight": (vocabulary, width),
        "lm_head.weight": (vocabulary, width),
        "model.norm.weight": (width,),
    }
    left = elements - sum(map(math.prod, shapes.values()))
    if left < 0:
        return {"model.rest.weight": (elements,)}
    layers, rest = divmod(left, sum(map(math.prod, layer.values())))
    for i in range(layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes | ({"model.rest.weight": (rest,)} if rest > 0 else {})


def equal_tensors(elements: int, count: int) -> Shapes:
    return {
        f"tensor.{i:06}": (elements * (i + 1) // count - elements * i // count,)
        for i in range(count)
    }


def make_checkpoints(
    folder: Path,
    count: int,
    dtype: str,
    shapes: Shapes,
    *,
    suffixes: Sequence[str] = (".safetensors",),
    turned: Sequence[int] = (),
) -> list[Path]:
    """Write ``count`` checkpoints with each of the suffixes, large ones in two processes; the paths
    of those with the first. The matrices of those with the numbers ``turned`` lie column by
    column."""
    specs = [
        {
            "path": str(folder / f"input-{seed:02}{suffix}"),
            "dtype": dtype,
            "shapes": shapes,
            "seed": seed,
            "turned": seed in turned,
        }
        for suffix in suffixes
        for seed in range(count)
    ]
    size = ITEM_BYTES[dtype] * sum(map(math.prod, shapes.values()))
    jobs = 2 if len(specs) * size > 64 * MIB else 1
    workers = []
    try:
        for i in range(jobs):
            listed = folder / f"job-{i}.json"
            listed.write_text(json.dumps(specs[i::jobs]))
            workers.append(subprocess.Popen(job("generate", listed)))
        if any(worker.wait() != 0 for worker in workers):
            sys.exit("The checkpoints could not be generated; see above.")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return [folder / f"input-{seed:02}{suffixes[0]}" for seed in range(count)]


# ---- Timing.


@dataclass(frozen=True)
class Run:
    seconds: float
    peak: int  # bytes


def measure(command: Command, folder: Path) -> Run:
    """Run a command to its end; SystemExit with its last words if it fails."""
    log = folder / "log.txt"
    # An installed program has its bytecode beside it.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen would wait for it in vain
    if process.returncode != 0:
        words = log.read_text(errors="replace")[-2000:]
        sys.exit(f"{shlex.join(command[:4])} ... ended with {process.returncode}:\n{words}")
    return Run(seconds, usage.ru_maxrss * 1024)


def measure_together(command: Command, folder: Path) -> int:
    """Run a command to its end: the peak of all its processes (PSS), in bytes, sampled."""
    ended = threading.Event()
    peak = 0

    def watch() -> None:
        nonlocal peak
        while not ended.wait(SAMPLE_SECONDS):
            peak = max(peak, memory_of_descendants())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        measure(command, folder)
    finally:
        ended.set()
        watcher.join()
    return peak


def memory_of_descendants() -> int:
    """Bytes that all processes below this one have together, just now: a page that several of them
    share is divided among all that share it."""
    pids = [pid for pid in children_of(os.getpid()) if pid not in SERVERS]
    for pid in pids:
        pids += children_of(pid)
    total = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
        total += int(found[1]) if found else 0
    return 1024 * total


def children_of(pid: int) -> list[int]:
    try:
        return [
            int(child)
            for task in os.listdir(f"/proc/{pid}/task")
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        ]
    except OSError:
        return []


def time_methods(
    commands: Mapping[str, Command], inputs: Sequence[Path], folder: Path, repeat: int
) -> dict[str, list[Run]]:
    """Interleaved, each round beginning with another method; reading all files first. What they
    write, ``out.*`` and all in ``out``, is removed after each."""
    methods = [*commands]
    measure(["sh", "-c", 'cat "$@" >/dev/null', "warm", *map(str, inputs)], folder)
    runs: dict[str, list[Run]] = {method: [] for method in methods}

    def run(method: str, measured: Callable[[Command, Path], Result]) -> Result:
        out = folder / "out"
        out.mkdir()
        os.sync()  # nobody pays for what another left to be written
        found = measured(commands[method], folder)
        written = [*folder.glob("out.*"), *out.glob("*")]
        if sum(path.stat().st_size for path in written) < 0.9 * inputs[0].stat().st_size:
            sys.exit(f"{method} wrote too little.")
        for path in folder.glob("out.*"):
            path.unlink()
        shutil.rmtree(out)
        return found

    for i in range(repeat):
        first = i % len(methods)
        for method in methods[first:] + methods[:first]:
            runs[method].append(run(method, measure))
    for method in methods:
        together = run(method, measure_together)
        runs[method] = [replace(each, peak=together) for each in runs[method]]
    return runs


def copy_command(inputs: Sequence[Path], out: Path, *, sync: bool = False) -> list[str]:
    """The limit: every byte read once, the result written once."""
    script = 'out=$1; shift; cat "$@" >/dev/null && cat "$1" >"$out"'
    script += ' && sync "$out"' if sync else ""
    return ["sh", "-c", script, "limit", str(out), *map(str, inputs)]


def of_rounds(runs: Sequence[Run], others: Sequence[Run]) -> float:
    """The median of each round's seconds against the other's of that round: what slows the machine
    for a while cancels."""
    pairs = zip(runs, others, strict=True)
    return statistics.median(mine.seconds / his.seconds for mine, his in pairs)


# ---- A server of S3.

BUCKET = "benchmark"
SERVERS: set[int] = set()
"""Processes that are no part of what is measured."""


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a server on this machine, which the environment leads to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    os.environ |= {**dict.fromkeys(keys, "key"), "AWS_ENDPOINT_URL": endpoint}
    os.environ |= {"AWS_REGION": "us-east-1"}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    SERVERS.add(server.pid)
    try:
        for _ in range(600):
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            time.sleep(0.1)
        yield endpoint
    finally:
        server.kill()
        server.wait()


def upload(paths: Sequence[Path]) -> None:
    """Put files into the bucket, which is made."""
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    for path in paths:
        client.put_object(Bucket=BUCKET, Key=path.name, Body=path.read_bytes())


# ---- The machine.


def memory(field: str) -> int:
    """A field of /proc/meminfo, in bytes."""
    found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def show_size(size: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB")):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} bytes"


def require_room(folder: Path, files: int, process: int, *, in_memory: bool) -> None:
    """SystemExit unless the files, and the largest process, in bytes, find room."""
    if shutil.disk_usage(folder).free < files:
        sys.exit(f"{folder} has no room for {show_size(files)}; give --dir or a smaller --size.")
    if memory("MemAvailable") < (files if in_memory else 0) + process:
        sys.exit("Too little memory for this; give a smaller --size, or --only without recipe.")
    if not in_memory and memory("MemAvailable") < files + process:
        print("Warning: not all inputs stay in the page cache.", file=sys.stderr)


def show_machine(folder: Path) -> None:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    cores = len(os.sched_getaffinity(0))
    kind = subprocess.run(
        ["stat", "--file-system", "--format=%T", folder], stdout=subprocess.PIPE, text=True
    )
    versions = subprocess.run(
        [
            str(PYTHON),
            "-c",
            "import importlib.metadata as m\n"
            "for n in ('swavg', 'numpy', 'ml_dtypes', 'numkong', 'safetensors', 'torch'):\n"
            "    try: print(n, m.version(n), end=', ' * (n != 'torch'))\n"
            "    except m.PackageNotFoundError: print('no', n, end=', ' * (n != 'torch'))",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    processor = model[1].strip() if model else platform.machine()
    load = os.getloadavg()[0]
    print(f"- {processor}, {cores} cores, {show_size(memory('MemTotal'))}, load {load:.1f}")
    print(f"- Linux {platform.release()}, files on {kind.stdout.strip()}")
    print(f"- Python {platform.python_version()}, {versions.stdout.strip()}\n", flush=True)


def require_swavg(program: str) -> None:
    """SystemExit if it is not there; its bytecode is made."""
    if shutil.which(program) is None:
        sys.exit("swavg is not installed here yet; run scripts/environment first.")
    compiled = [str(PYTHON), "-m", "compileall", "-q", str(ROOT / "swavg")]
    subprocess.run(compiled, check=True)


def scratch(folder: Path | None) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(dir=folder, prefix="swavg-benchmark-")


def parse_size(text: str) -> int:
    """``1GiB``, ``500MB``: bytes, in whole elements. For argparse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(i?)B?", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 1GiB or 500MB")
    base = 1024 if match[3] else 1000
    size = int(float(match[1]) * base ** " KMG".index(match[2].upper() or " "))
    if size < 4 or size % 4:
        raise argparse.ArgumentTypeError("a size in whole elements of 4 bytes is needed")
    return size


def positive(text: str) -> int:
    """A number above 0. For argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)
