"""Who runs the tasks: every error as it was, interrupts, and nothing left behind."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import make
import numpy as np
import plans
import pytest
from checkpoints import planned
from command_line import children

import swavg
from swavg import Resources, errors
from swavg.engine.executors import part, threads
from swavg.engine.forked import can_fork

ROOT = Path(__file__).parents[2]

# A process of its own can fork: it has neither torch nor threads, as the command line has.
FORKING = """
import os, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import swavg
from dataclasses import replace
from swavg import Resources, Row
from swavg.engine import forked
from swavg.engine.workers import start, tools_of

FORKED = Resources(threads=2, processes=True)

def planned(inputs, output, **more):
    n = len(inputs)
    plan = swavg.prepare(inputs, [Row((1 / n,) * n, tuple(range(n)))], [output], **more)
    return replace(plan, cut=1 << 16)

def workers():
    return [int(pid) for pid in open("/proc/self/task/%d/children" % os.getpid()).read().split()]

"""


def large(folder, count=3, elements=400_000, dtype="f4", spoil=None):
    """Files of many tasks; ``spoil`` gets the array of the second."""
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


# Large enough that the command forks by itself.
WORTH_IT = 4_000_000


def command(*arguments, **more):
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen(
        [sys.executable, "-m", "swavg", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}, **more,
    )  # fmt: skip


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


@pytest.fixture
def working(tmp_path):
    """A run in a session of its own whose two workers are stopped amid their work."""
    process = command(
        "average", *large(tmp_path, elements=WORTH_IT), "-o", tmp_path / "out.safetensors",
        "--threads", 2, start_new_session=True,
    )  # fmt: skip
    try:
        within(30, lambda: process.poll() is not None or len(children(process.pid)) == 2)
        for pid in children(process.pid):
            os.kill(pid, signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.communicate()


REPORTED = """
import json
from swavg import Policy
found = []
for resources in (Resources(threads=1, processes=False), Resources(threads=2, processes=False),
                  FORKED):
    plan = planned(sys.argv[2:-1], sys.argv[-1], policy=Policy(**json.loads(sys.argv[1])))
    try:
        (report,) = swavg.execute(replace(plan, outputs=tuple(
            replace(output, target=replace(output.target, force=True)) for output in plan.outputs
        )), resources)
    except swavg.SwavgError as error:
        print(json.dumps([error.exit_code, str(error)]))
    else:
        facts = report.to_json()
        for name in ("seconds", "memory", "threads"):
            del facts[name]
        print(json.dumps([0, facts]))
"""


def outcomes(policy, *paths):
    """What becomes of a run with one worker, threads, and processes."""
    return [json.loads(line) for line in library(REPORTED, json.dumps(policy), *paths)]


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refused_numbers_are_refused_in_the_same_words(tmp_path, value):
    def spoil(values):
        values[301_234:] = value

    paths = large(tmp_path, spoil=spoil)
    alone, threaded, forked = outcomes({}, *paths, tmp_path / "out.safetensors")
    assert alone == threaded == forked
    assert alone[0] == 6
    assert "1.safetensors: 'x' at [301234] is " in alone[1]
    assert "allow_nonfinite=True" in alone[1]
    assert make.debris(tmp_path) == []


def test_integers_that_may_not_differ_are_refused_in_the_same_words(tmp_path):
    paths = large(tmp_path, dtype="i4")
    out = tmp_path / "out.safetensors"
    alone, threaded, forked = outcomes({"integers": "error"}, *paths, out)
    assert alone == threaded == forked
    assert alone[0] == 3


def test_what_a_run_found_out_is_reported_the_same(tmp_path):
    paths = large(tmp_path, spoil=lambda values: values.__setitem__(7, np.nan))
    out = tmp_path / "out.safetensors"
    alone, threaded, forked = outcomes({"allow_nonfinite": True}, *paths, out)
    assert alone == threaded == forked
    assert alone[1]["nonfinite"] == ["x"]


class Broken:
    """A sink that fails where tasks of these numbers would write."""

    forks = True
    fds = ()

    def __init__(self, cut, numbers):
        self.cut, self.numbers, self.failure = cut, numbers, None

    def pwrite(self, offset, data):
        if offset // self.cut in self.numbers:
            raise errors.OutputError("out", f"task {offset // self.cut} failed")

    def sync(self):
        pass

    def fail(self, error):
        self.failure = error


@pytest.mark.parametrize("executor", [part(0, 1), threads(1), threads(4)])
def test_the_first_error_by_task_number_is_raised(tmp_path, executor):
    paths = large(tmp_path, count=2)
    plan = planned(paths, tmp_path / "out.safetensors", cut=1 << 16)
    sink = Broken(plan.cut, {9, 13, 20})
    with pytest.raises(swavg.OutputError, match="task 9 failed"):
        plans.results_of(plan, executor, [[sink]])


def test_the_first_error_by_task_number_is_raised_by_processes(tmp_path):
    """The worker of odd tasks fails at once, that of even ones late and earlier in the plan."""
    lines = library(
        """
import time
from swavg.errors import OutputError
class Broken:
    forks, fds = True, ()
    def pwrite(self, offset, data):
        number = offset // plan.cut
        if number == 8:
            time.sleep(0.3)
        if number in (8, 9, 13, 20):
            raise OutputError("out", f"task {number} failed")
    def sync(self): pass
    def fail(self, error): pass
plan = planned(sys.argv[1:-1], sys.argv[-1])
_, executor, sizes = start(plan, FORKED)
try:
    list(executor(plan, plan.tasks(), [[Broken()]], tools_of(plan, sizes, FORKED)))
except OutputError as error:
    print(error, workers())
""",
        *large(tmp_path, count=2),
        tmp_path / "out.safetensors",
    )
    assert lines == ["out: task 8 failed []"]


@pytest.mark.parametrize("count", [1, 3])
def test_threads_answer_in_the_order_of_tasks(tmp_path, count):
    plan = planned(large(tmp_path), tmp_path / "out.safetensors", cut=1 << 14)
    sinks = plans.open_sinks(plan, tmp_path)
    results = plans.results_of(plan, threads(count), sinks)
    plans.close(sinks)
    assert [result.number for result in results] == list(plan.tasks())


def test_what_waits_in_a_sink_learns_of_a_failure(tmp_path):
    plan = planned(large(tmp_path), tmp_path / "out.safetensors", cut=1 << 16)
    sink = Broken(plan.cut, {3})
    with pytest.raises(swavg.OutputError, match="task 3 failed"):
        plans.results_of(plan, threads(2), [[sink]])
    assert str(sink.failure) == "out: task 3 failed"


@pytest.mark.parametrize("at", [0, 5, 20])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failure_at_any_task_leaves_the_old_file_and_no_debris(tmp_path, at, old):
    paths, out = large(tmp_path / "in"), tmp_path / "out.safetensors"
    if old is not None:
        out.write_bytes(old)
    plan = planned(paths, out, cut=1 << 16, force=True)
    seen = []

    def fail(progress):
        seen.append(progress)
        if len(seen) > at:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        swavg.execute(plan, Resources(threads=2), fail)
    assert (out.read_bytes() if out.exists() else None) == old
    assert sorted(os.listdir(tmp_path)) == sorted(["in", *([out.name] if old else [])])
    assert not any(thread.name.startswith("swavg-0") for thread in threading.enumerate())


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
    swavg.execute(planned(sys.argv[1:-1], sys.argv[-1]), FORKED, tick)
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
    # So many tasks that no worker is done when it is killed.
    plan = replace(planned(sys.argv[1:-1], sys.argv[-1]), cut=1 << 10)
    swavg.execute(plan, FORKED, tick)
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


@pytest.mark.slow
def test_the_command_that_loses_a_worker_says_so(working, tmp_path):
    first, second = children(working.pid)
    os.kill(first, signal.SIGKILL)
    _, err = working.communicate(timeout=60)
    assert working.returncode == 1
    assert b"A worker process was ended by SIGKILL." in err
    assert b"Traceback" not in err
    assert ended(second)
    assert not (tmp_path / "out.safetensors").exists()
    assert make.debris(tmp_path) == []


@pytest.mark.parametrize(("kind", "type_"), [("value", "ValueError"), ("odd", "RuntimeError")])
def test_an_error_that_nobody_foresaw_comes_with_the_workers_traceback(tmp_path, kind, type_):
    lines = library(
        """
class Odd(Exception):
    def __init__(self, one, two):  # which cannot be unpickled
        super().__init__(one)
class Sink:
    forks, fds = True, ()
    def pwrite(self, offset, data):
        if sys.argv[1] == "value":
            raise ValueError("what is this")
        raise Odd("what", "is this")
    def sync(self): pass
    def fail(self, error): pass
plan = planned(sys.argv[2:-1], sys.argv[-1])
_, executor, sizes = start(plan, FORKED)
import traceback
try:
    list(executor(plan, plan.tasks(), [[Sink()]], tools_of(plan, sizes, FORKED)))
except (ValueError, RuntimeError) as error:
    print(type(error).__name__)
    traceback.print_exc(file=sys.stdout)
""",
        kind,
        *large(tmp_path),
        tmp_path / "out.safetensors",
    )
    assert lines[0] == type_
    assert any('File "<string>"' in line and "in pwrite" in line for line in lines)


def test_nothing_is_left_of_workers_and_no_file_stays_open(tmp_path):
    before, after, left = library(
        """
def files():
    return sorted(os.listdir("/proc/self/fd"))
print(files())
for _ in range(3):
    swavg.execute(planned(sys.argv[1:-1], sys.argv[-1], force=True), FORKED)
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


@pytest.mark.slow
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
swavg.execute(planned(sys.argv[1:-1], sys.argv[-1]), Resources(threads=3, processes=True))
""",
        *paths,
        tmp_path / "out",
    )
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 100


@pytest.mark.slow
def test_standard_output_has_the_bytes_of_a_file(tmp_path):
    paths = large(tmp_path, elements=WORTH_IT)
    out, _ = command("average", *paths, "-o", "-").communicate(timeout=60)
    done = command("average", *paths, "-o", tmp_path / "out.safetensors")
    done.communicate(timeout=60)
    assert done.returncode == 0
    assert out == (tmp_path / "out.safetensors").read_bytes()


@pytest.mark.slow
def test_standard_streams_may_be_closed(tmp_path):
    paths = large(tmp_path, elements=WORTH_IT)
    shell = 'exec "$@" 0<&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-m", "swavg", "average", *paths,
         "-q", "-o", tmp_path / "out.safetensors"],
        stdout=subprocess.PIPE, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0
    assert (tmp_path / "out.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 130)]
)
def test_a_signal_to_the_whole_group_is_one_interruption(working, tmp_path, number, code):
    pids = children(working.pid)
    os.killpg(working.pid, number)
    _, err = working.communicate(timeout=60)
    assert working.returncode == code
    assert err.strip() == b"swavg: interrupted; nothing was written"
    assert all(map(ended, pids))
    assert not (tmp_path / "out.safetensors").exists()
    assert make.debris(tmp_path) == []


@pytest.mark.slow
def test_workers_end_with_a_main_process_that_is_killed(working):
    pids = children(working.pid)
    assert len(pids) == 2
    working.kill()
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    # Its standard error ends only when nobody holds it any more.
    working.communicate(timeout=60)
    within(30, lambda: all(map(ended, pids)))


def test_this_process_computes_where_the_system_allows_no_more(tmp_path):
    (used,) = library(
        """
import errno
calls = []
fork = os.fork
def refused():
    calls.append(1)
    if len(calls) == 2:
        raise BlockingIOError(errno.EAGAIN, "no more")
    return fork()
os.fork = refused
swavg.execute(planned(sys.argv[1:-1], sys.argv[-1]), FORKED)
print(len(calls), workers())
""",
        *large(tmp_path),
        tmp_path / "out.safetensors",
    )
    assert used == "2 []"
    assert (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("allowed", [0, 1])
@pytest.mark.parametrize("output", ["out.safetensors", "pipe"])
def test_where_threads_are_refused_fewer_or_none_do_it_all(tmp_path, monkeypatch, allowed, output):
    paths = large(tmp_path)
    swavg.execute(planned(paths, tmp_path / "expected.safetensors"), Resources(threads=1))
    start, started = threading.Thread.start, []
    if output == "pipe":
        os.mkfifo(tmp_path / output)
        with open(tmp_path / "read", "wb") as file:
            reader = subprocess.Popen(["cat", tmp_path / output], stdout=file)
    plan = planned(paths, tmp_path / output)

    def refused(self):
        if len(started) == allowed:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refused)
    swavg.execute(plan, Resources(threads=3, processes=False))
    if output == "pipe":
        reader.wait()
    made = tmp_path / ("read" if output == "pipe" else output)
    assert made.read_bytes() == (tmp_path / "expected.safetensors").read_bytes()
    assert len(started) == allowed


def test_a_process_with_threads_or_torch_does_not_fork():
    found = library(
        """
import threading, types
can_fork = forked.can_fork
print(can_fork())
end = threading.Event()
thread = threading.Thread(target=end.wait)
thread.start()
print(can_fork())
end.set(); thread.join()
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(can_fork())
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
sys.modules["torch"] = types.ModuleType("torch")
print(can_fork())
"""
    )
    assert found == ["True", "False", "False", "False"]
    assert threading.active_count() >= 1
    import torch  # noqa: F401

    assert not can_fork()


FORKS = """
forks = []
fork = os.fork
def counted():
    forks.append(1)
    return fork()
os.fork = counted
def count(paths, **resources):
    forks.clear()
    swavg.execute(planned(paths, sys.argv[-1], force=True), Resources(**resources))
    return len(forks)
"""


@pytest.mark.slow
def test_processes_are_for_work_that_is_worth_them(tmp_path):
    small, worth = large(tmp_path / "small", 2), large(tmp_path / "worth", 3, WORTH_IT)
    found = library(
        FORKS
        + """
small, worth = sys.argv[1:3], sys.argv[3:6]
print(count(worth, threads=2), count(worth, threads=1), count(worth, threads=2, processes=False))
print(count(small, threads=2), count(small, threads=2, processes=True))
print(count(small, threads=1, processes=True))
""",
        *small,
        *worth,
        tmp_path / "out.safetensors",
    )
    assert found == ["2 0 0", "0 2", "0"]


def test_a_progress_bar_needs_no_thread_that_would_rule_out_processes(tmp_path):
    (shown,) = library(
        FORKS
        + """
import io
from swavg.console.progress import progress_bar
class Terminal(io.StringIO):
    def isatty(self):
        return True
sys.stderr = Terminal()
with progress_bar("averaging", "bytes", shown=True) as update:
    swavg.execute(planned(sys.argv[1:-1], sys.argv[-1]), FORKED,
                  lambda progress: update(progress.read, progress.total))
print("averaging" in sys.stderr.getvalue(), len(forks))
""",
        *large(tmp_path),
        tmp_path / "out.safetensors",
    )
    assert shown == "True 2"


@pytest.mark.parametrize(
    "error",
    [
        errors.SwavgError("m", hint="h"),
        errors.WorkerError("m"),
        errors.RequestError("m"),
        errors.RequestError("must be 1", argument="threads"),
        errors.MismatchError("m", differences=[errors.Difference("n", "w", (("a", "b"),))]),
        errors.InputError("p", "x", hint="h"),
        errors.OutputError("p", "x"),
        errors.OutputExistsError("p", "x"),
        errors.NumericsError("m", hint="h"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel_whole(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.args, vars(copy)) == (str(error), error.args, vars(error))
