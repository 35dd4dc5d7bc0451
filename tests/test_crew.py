"""Worker processes: the same bytes, every error as it was, and nothing left behind."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import make
import numpy as np
import pytest

import swavg
from swavg import Resources, crew, errors, pieces
from swavg.pieces import Budget
from swavg.policy import Policy

# A process of its own can fork: it has neither torch nor threads, as the command line has.
FORKING = """
import os, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import swavg
from swavg import crew, pieces, stream
pieces._WORTH_A_FORK = 0
pieces._PROCESS_BLOCK = pieces._PROCESS_BLOCKS = 1 << 12
pieces._PROCESS_CHUNK = 1 << 14
crew.Threads = None  # nothing here may fall back

def workers():
    return [int(pid) for pid in open("/proc/self/task/%d/children" % os.getpid()).read().split()]

"""
COMMAND = FORKING + "from swavg.cli import main; main()"


def large(folder, count=3, elements=400_000, dtype="f4", spoil=None):
    """Files of many chunks; ``spoil`` gets the array of the second."""
    paths = []
    for index in range(count):
        values = np.random.default_rng(index).standard_normal(elements).astype(dtype)
        if index == 1 and spoil is not None:
            spoil(values)
        paths.append(make.arrays(folder / f"{index}.safetensors", index, x=values))
    return paths


def library(code, *arguments):
    """Run code in a process that forks; what it printed, a line each."""
    done = make.python(FORKING + code, *map(str, arguments))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def command(*arguments, forking=True, **more):
    start = [sys.executable, "-c", COMMAND] if forking else [sys.executable, "-m", "swavg"]
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen([*start, *map(str, arguments)], **more)


def said(*arguments, forking):
    process = command(*arguments, forking=forking)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def ended(pid):
    """True if a process is gone, or a zombie that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def within(seconds, true):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def children(pid):
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def blocked(tmp_path):
    """A run in a session of its own that waits for the reader of its output, amid its work."""
    process = command(
        "average", *large(tmp_path, elements=2_000_000), "-o", "-", "--threads", 2,
        start_new_session=True,
    )  # fmt: skip
    try:
        within(30, lambda: process.poll() is not None or len(children(process.pid)) == 2)
        assert process.stdout.read(1000)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_processes_give_the_bytes_and_findings_of_threads_for_every_dtype(tmp_path):
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "crew_properties.py", tmp_path],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1",
             "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 40


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refused_numbers_are_refused_in_the_same_words(tmp_path, value):
    def spoil(values):
        values[301_234] = value

    paths = large(tmp_path, spoil=spoil)
    arguments = ["average", *paths, "-o", tmp_path / "out.safetensors"]
    found = said(*arguments, forking=True)
    assert found == said(*arguments, forking=False)
    assert found[0] == 6
    assert b"1.safetensors: 'x' at [301234] is " in found[2]
    assert b"--allow-nonfinite" in found[2]
    assert make.debris(tmp_path) == []


def test_integers_that_may_not_differ_are_refused_in_the_same_words(tmp_path):
    paths = large(tmp_path, dtype="i4")
    arguments = ["average", *paths, "-o", tmp_path / "out.safetensors", "--integers", "error"]
    found = said(*arguments, forking=True)
    assert found == said(*arguments, forking=False)
    assert found[0] == 3


def test_what_a_run_found_out_is_reported_as_threads_report_it(tmp_path):
    paths = large(tmp_path, spoil=lambda values: values.__setitem__(7, np.nan))
    out = tmp_path / "out.safetensors"
    arguments = ["average", *paths, "--allow-nonfinite", "--force", "--json", "-o", out]
    reports = []
    for forking in (True, False):
        code, report, _ = said(*arguments, forking=forking)
        assert code == 0
        reports.append(json.loads(report))
    assert reports[0]["nonfinite"] == ["x"]
    for report in reports:
        # Smaller chunks have a smaller sample.
        del report["seconds"], report["memory"], report["inputs"]
    assert reports[0] == reports[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [("os.utime(path, ns=(1, 1))", "changed while it was read"), ("os.truncate(path, 9000)", "")],
)
def test_an_input_that_changes_is_an_input_error(tmp_path, change, message):
    paths = large(tmp_path)
    code, text, *left = library(
        f"""
def tick(progress):
    path = sys.argv[1]
    {change}
try:
    swavg.average(sys.argv[1:-1], output=sys.argv[-1], on_progress=tick)
except swavg.SwavgError as error:
    print(error.exit_code)
    print(error)
print(workers())
""",
        *paths,
        tmp_path / "out.safetensors",
    )
    assert code == "4"
    assert text.startswith(paths[0])
    assert message in text
    assert left == ["[]"]
    assert sorted(os.listdir(tmp_path)) == ["0.safetensors", "1.safetensors", "2.safetensors"]


def test_a_worker_that_is_killed_is_an_error_and_ends_the_run(tmp_path):
    code, text, left = library(
        """
import signal
def tick(progress):
    for pid in workers()[:1]:
        os.kill(pid, signal.SIGKILL)
try:
    swavg.average(sys.argv[1:-1], output=sys.argv[-1], on_progress=tick)
except swavg.SwavgError as error:
    print(error.exit_code)
    print(error)
print(workers())
""",
        *large(tmp_path),
        tmp_path / "out.safetensors",
    )
    assert code == "1"
    assert text.startswith("A worker process was ended by SIGKILL.")
    assert left == "[]"
    assert sorted(os.listdir(tmp_path)) == ["0.safetensors", "1.safetensors", "2.safetensors"]


@pytest.mark.parametrize(("kind", "type_"), [("value", "ValueError"), ("odd", "RuntimeError")])
def test_an_error_that_nobody_foresaw_comes_with_the_workers_traceback(tmp_path, kind, type_):
    lines = library(
        """
from swavg.computing import Computer
class Odd(Exception):
    def __init__(self, one, two):  # which cannot be unpickled
        super().__init__(one)
def fail(self, piece, outs):
    if sys.argv[1] == "value":
        raise ValueError("what is this")
    raise Odd("what", "is this")
Computer.compute = fail
import traceback
try:
    swavg.average(sys.argv[2:-1], output=sys.argv[-1])
except (ValueError, RuntimeError) as error:
    print(type(error).__name__)
    traceback.print_exc(file=sys.stdout)
""",
        kind,
        *large(tmp_path),
        tmp_path / "out.safetensors",
    )
    assert lines[0] == type_
    assert any(line.strip().startswith('File "<string>"') and "in fail" in line for line in lines)


def test_nothing_is_left_of_workers_and_no_file_stays_open(tmp_path):
    before, after, left = library(
        """
def files():
    return sorted(os.listdir("/proc/self/fd"))
print(files())
for _ in range(3):
    swavg.average(sys.argv[1:-1], output=sys.argv[-1], force=True)
print(files())
try:
    print(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("none")
""",
        *large(tmp_path),
        tmp_path / "out.safetensors",
    )
    assert before == after
    assert left == "none"


def test_few_open_files_suffice(tmp_path):
    names = [f"model-{i:05d}-of-00100.safetensors" for i in range(1, 101)]
    paths = [
        make.sharded(
            tmp_path / f"in{index}",
            {name: {f"layer.{at}": np.full(5, index, "f4")} for at, name in enumerate(names)},
        )
        for index in range(20)
    ]
    library(
        """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
swavg.average(sys.argv[1:-1], output=sys.argv[-1], resources=swavg.Resources(threads=3))
""",
        *paths,
        tmp_path / "out",
    )
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 100


def test_standard_output_has_the_bytes_of_a_file(tmp_path):
    paths = large(tmp_path)
    code, out, _ = said("average", *paths, "-o", "-", forking=True)
    assert code == 0
    assert said("average", *paths, "-o", tmp_path / "out.safetensors", forking=False)[0] == 0
    assert out == (tmp_path / "out.safetensors").read_bytes()


def test_standard_streams_may_be_closed(tmp_path):
    paths = large(tmp_path)
    shell = 'exec "$@" 0<&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-c", COMMAND, "average", *paths,
         "-q", "-o", tmp_path / "out.safetensors"],
        stdout=subprocess.PIPE, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 130)]
)
def test_a_signal_to_the_whole_group_is_one_interruption(blocked, number, code):
    pids = children(blocked.pid)
    os.killpg(blocked.pid, number)
    _, err = blocked.communicate(timeout=60)
    assert blocked.returncode == code
    assert err.strip() == b"swavg: interrupted; nothing was written"
    assert all(map(ended, pids))


def test_workers_end_with_a_main_process_that_is_killed(blocked):
    pids = children(blocked.pid)
    assert len(pids) == 2
    blocked.kill()
    # Its standard error ends only when nobody holds it any more.
    blocked.communicate(timeout=60)
    within(30, lambda: all(map(ended, pids)))


def test_a_killed_run_has_published_nothing(tmp_path):
    paths = large(tmp_path / "in")
    code = (
        FORKING
        + """
import signal
def tick(progress):
    os.kill(os.getpid(), signal.SIGKILL)
swavg.average(sys.argv[1:-1], output=sys.argv[-1], on_progress=tick)
"""
    )
    out = tmp_path / "out.safetensors"
    assert make.python(code, *paths, str(out)).returncode == -signal.SIGKILL
    assert not out.exists()


def test_threads_compute_where_the_system_allows_no_more_processes(tmp_path):
    (used,) = library(
        """
import errno
del crew.Threads
calls = []
fork = os.fork
def refused():
    calls.append(1)
    if len(calls) == 2:
        raise BlockingIOError(errno.EAGAIN, "no more")
    return fork()
os.fork = refused
swavg.average(sys.argv[1:-1], output=sys.argv[-1], resources=swavg.Resources(threads=2))
print(len(calls), workers())
""",
        *large(tmp_path),
        tmp_path / "out.safetensors",
    )
    assert used == "2 []"


def test_a_process_with_threads_or_torch_does_not_fork(tmp_path):
    found = library(
        """
import threading, types
print(crew.can_fork())
end = threading.Event()
thread = threading.Thread(target=end.wait)
thread.start()
print(crew.can_fork())
end.set(); thread.join()
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(crew.can_fork())
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
sys.modules["torch"] = types.ModuleType("torch")
print(crew.can_fork())
"""
    )
    assert found == ["True", "False", "False", "False"]
    assert threading.active_count() >= 1
    assert not crew.can_fork()  # pytest has torch


def test_a_progress_bar_needs_no_thread_that_would_rule_out_processes(tmp_path):
    (shown,) = library(
        """
import io
from swavg.console.progress import progress_bar
class Terminal(io.StringIO):
    def isatty(self):
        return True
sys.stderr = Terminal()
with progress_bar("averaging", "bytes", shown=True) as update:
    swavg.average(sys.argv[1:-1], output=sys.argv[-1],
                  on_progress=lambda progress: update(progress.read, progress.total))
print("averaging" in sys.stderr.getvalue())
""",
        *large(tmp_path),
        tmp_path / "out.safetensors",
    )
    assert shown == "True"


def budget(layouts, **resources):
    return Budget.within(Resources(**resources), layouts, Policy(), can_fork=lambda: True)


@pytest.fixture
def layouts(tmp_path):
    """Two inputs of one tensor: 128 MiB to read."""
    from test_memory import sparse

    paths = [sparse(tmp_path / f"{i}.safetensors", [32 << 20]) for i in range(2)]
    return swavg.prepare(paths, output=tmp_path / "out.safetensors").output.layouts


def test_processes_are_for_work_that_is_worth_them(layouts):
    assert budget(layouts, threads=2).processes
    assert not budget(layouts, threads=1).processes
    assert not budget(layouts, threads=2, device="torch").processes
    assert not budget(layouts, threads=2, processes=False).processes
    small = [replace(layouts[0], tasks=())]
    assert not budget(small, threads=2).processes
    assert budget(small, threads=2, processes=True).processes
    assert not Budget.within(Resources(threads=2), layouts, Policy()).processes


def test_a_machine_of_many_processors_gets_as_many_processes_as_memory_allows(layouts):
    many = budget(layouts, threads=64)
    assert many.processes
    assert many.workers == pieces.DEFAULT_MEMORY // pieces._PROCESS_MEMORY
    assert many.memory <= pieces.DEFAULT_MEMORY
    assert budget(layouts, threads=64, memory=1 << 30).workers == 64
    little = budget(layouts, threads=64, memory=1 << 20)
    assert not little.processes
    assert little.memory <= 1 << 20


def test_chunks_divide_the_distance_of_the_samples_whatever_the_dtype(layouts):
    for output_size in (1, 2, 4, 8):
        found = Budget(2, 1 << 18, 4, 8, 8, output_size, False)._for_processes(32 << 20, 1)
        assert (1 << 20) % (found.elements * found.blocks) == 0


@pytest.mark.parametrize(
    "error",
    [
        errors.SwavgError("m", hint="h"),
        errors.WorkerError("m"),
        errors.RequestError("m"),
        errors.MismatchError("m", differences=[errors.Difference("n", "w", (("a", "b"),))]),
        errors.InputError("p", "x", hint="h"),
        errors.OutputError("p", "x"),
        errors.NumericsError("m", hint="h"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_whole(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.args, vars(copy)) == (str(error), error.args, vars(error))
