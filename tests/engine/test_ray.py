"""A Ray cluster makes the same bytes, whatever becomes of its workers; its nodes run here."""

import contextlib
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import planned
from command_line import SWAVG, children, process
from command_line import swavg as in_process
from make import debris

import swavg
from swavg import Policy, Resources
from swavg.engine.ray.worker import Problem, Work, look, run_number
from swavg.errors import InputError, OutputError, RequestError

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


@contextlib.contextmanager
def two_nodes():
    with warnings.catch_warnings():
        # Ray's own modules use what others have deprecated.
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args=NODE | {"include_dashboard": False})
    try:
        made.add_node(**NODE)
        yield made
    finally:
        made.shutdown()


@pytest.fixture(scope="module")
def cluster():
    with two_nodes() as made:
        yield made


@pytest.fixture
def on_ray(cluster):
    return Resources(engine="ray", address=cluster.address)


def files(folder, count=3, megabytes=12, **values):
    """Safetensors files of one large tensor and a small one, by seed."""
    paths = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        large = random.standard_normal((megabytes << 18), np.float32)
        made = {"large": large, "small": np.float32([seed, 1])} | values
        paths.append(folder / f"{seed}.safetensors")
        safetensors.numpy.save_file(made, paths[-1])
    return paths


def descendants(pid):
    return [each for child in children(pid) for each in (child, *descendants(child))]


def workers(title="ray::run_number"):
    """The processes of this cluster's workers that run a task just now."""
    found = []
    for pid in descendants(os.getpid()):
        try:
            if title.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


def a_worker_at_work():
    """As soon as one runs a task."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for pid in workers():
            return pid
        time.sleep(0.001)
    raise AssertionError("no task was run")


def local(plan, folder):
    """What this machine makes of a plan."""
    swavg.execute(plan, Resources(threads=1))
    made = [Path(output.target.path).read_bytes() for output in plan.outputs]
    for output in plan.outputs:
        os.unlink(output.target.path)
    return made


def distributed(plan, resources, on_progress=None):
    """What a cluster makes of it, and the reports."""
    reports = swavg.execute(plan, resources, on_progress)
    return [Path(output.target.path).read_bytes() for output in plan.outputs], reports


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_cluster_makes_the_bytes_of_one_machine(on_ray, tmp_path, suffix):
    policy = Policy() if suffix != ".pt" else Policy(dtype="float16")
    plan = planned(files(tmp_path), tmp_path / f"out{suffix}", (0.5, 0.3, 0.2), policy)
    expected = local(plan, tmp_path)
    made, (report,) = distributed(plan, on_ray)
    assert made == expected
    assert report.threads == 2
    assert "made on 2 nodes of a Ray cluster" in report.notes
    assert debris(tmp_path) == []


@pytest.mark.slow
def test_a_caller_that_is_connected_stays_so(cluster, tmp_path):
    import ray

    ray.init(address=cluster.address, log_to_driver=False)
    try:
        plan = planned(files(tmp_path), tmp_path / "out.safetensors")
        distributed(plan, Resources(engine="ray"))
        assert ray.is_initialized()
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_several_outputs_are_made_of_one_read(on_ray, tmp_path):
    paths = files(tmp_path)
    rows = [swavg.Row((0.5, 0.5), (1, 2)), swavg.Row((0.2, 0.3, 0.5), (0, 1, 2))]
    outputs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    plan = swavg.prepare(paths, rows, outputs)
    expected = local(plan, tmp_path)
    assert distributed(plan, on_ray)[0] == expected


def command(cluster, *more):
    inputs = [f"{n}.safetensors" for n in range(3)]
    return ["average", *inputs, "--engine", "ray", "--address", cluster.address, *more]


@pytest.mark.slow
def test_the_command_prints_the_path_alone(cluster, tmp_path):
    """Paths are relative, and the workers were started elsewhere."""
    files(tmp_path)
    found = process(*command(cluster, "-o", "out.safetensors"), cwd=tmp_path)
    assert (found.returncode, found.stdout) == (0, "out.safetensors\n"), found.stderr
    assert "note made on 2 nodes of a Ray cluster" in found.stderr
    process("average", *(f"{n}.safetensors" for n in range(3)), "-o", "local.safetensors",
            cwd=tmp_path)  # fmt: skip
    made = (tmp_path / "out.safetensors").read_bytes()
    assert made == (tmp_path / "local.safetensors").read_bytes()


@pytest.mark.slow
def test_an_error_arrives_as_on_one_machine(cluster, tmp_path):
    """The first of two, and nothing is left."""
    paths = files(tmp_path)
    content = safetensors.numpy.load_file(paths[1])
    content["large"][[100, 2_000_000, 3_000_000]] = np.nan
    safetensors.numpy.save_file(content, paths[1])
    found = [process(*call, cwd=tmp_path) for call in (command(cluster), command(cluster)[:4])]
    assert [each.returncode for each in found] == [6, 6]
    assert found[0].stderr == found[1].stderr
    assert "'large' at [100] is NaN" in found[0].stderr
    assert found[0].stdout == ""
    assert debris(tmp_path) == []


@pytest.mark.slow
def test_an_input_that_changes_is_noticed(on_ray, tmp_path):
    paths = files(tmp_path)
    plan = planned(paths, tmp_path / "out.safetensors")

    def touch(_):
        os.utime(paths[1], ns=(1, 1))

    with pytest.raises(InputError, match="changed while it was read"):
        swavg.execute(plan, on_ray, touch)
    assert debris(tmp_path) == []


@pytest.mark.slow
def test_without_a_cluster_the_command_ends_at_once(tmp_path):
    files(tmp_path, megabytes=1)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        begun = time.monotonic()
        # It does not listen.
        found = process(
            "average", "0.safetensors", "1.safetensors", "--engine", "ray", cwd=tmp_path,
            env=os.environ | {"RAY_ADDRESS": f"127.0.0.1:{port}"},
        )  # fmt: skip
        assert time.monotonic() - begun < 10
    assert (found.returncode, found.stdout) == (2, "")
    assert re.search(rf"No Ray cluster answers at [\d.]+:{port}\.", found.stderr)
    assert "--address" in found.stderr
    assert debris(tmp_path) == []


def test_without_any_cluster_none_is_started(tmp_path, monkeypatch):
    def nothing(_):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    name = "ray._private.services.canonicalize_bootstrap_address_or_die"
    monkeypatch.setattr(name, nothing)
    plan = planned(files(tmp_path, megabytes=1), tmp_path / "out.safetensors")
    with pytest.raises(RequestError, match="No Ray cluster runs on this machine"):
        swavg.execute(plan, Resources(engine="ray"))


def test_without_ray_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    plan = planned(files(tmp_path, megabytes=1), tmp_path / "out.safetensors")
    with pytest.raises(RequestError, match=r"pip install 'swavg\[ray\]'"):
        swavg.execute(plan, Resources(engine="ray"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--address", "h:1"], "--address needs --engine ray"),
        (["--engine", "ray", "--address", "ray://h:1"], "--address is HOST:PORT"),
        (["--engine", "ray", "--address", "nowhere"], "--address is HOST:PORT"),
        (["--engine", "ray", "--address", "h.invalid:1"], "No Ray cluster answers at h.invalid:1"),
        (["--engine", "ray", "-o", "-"], "--engine ray writes a file or a folder"),
        (["--engine", "ray", "--device", "cuda"], "--engine ray computes on processors"),
        (["--engine", "ray", "--part", "1/2"], "--engine ray shares the work out itself"),
    ],
)
def test_what_it_does_not_do_is_refused(tmp_path, options, message):
    paths = files(tmp_path, megabytes=1)
    found = in_process("average", *paths, *options, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert message in found.stderr
    assert debris(tmp_path) == []


def started(cluster, folder, *more):
    return subprocess.Popen(
        [*SWAVG, *command(cluster, "-o", "out.safetensors", *more)],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def made_locally(folder):
    process("average", *(f"{n}.safetensors" for n in range(3)), "-o", "local.safetensors",
            cwd=folder)  # fmt: skip
    return (folder / "local.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_worker_changes_nothing_but_a_note(cluster, tmp_path):
    files(tmp_path, megabytes=48)
    with started(cluster, tmp_path) as run:
        os.kill(a_worker_at_work(), signal.SIGKILL)
        stdout, stderr = run.communicate(timeout=120)
    assert (run.returncode, stdout) == (0, "out.safetensors\n"), stderr
    assert re.search(r"(tasks were|1 task was) run again: a worker or a node was lost\n", stderr)
    assert "raylet" not in stderr
    assert (tmp_path / "out.safetensors").read_bytes() == made_locally(tmp_path)
    assert debris(tmp_path) == []


@pytest.mark.slow
def test_a_killed_node_changes_nothing_but_a_note(cluster, on_ray, tmp_path):
    plan = planned(files(tmp_path, megabytes=24), tmp_path / "out.safetensors")
    expected = local(plan, tmp_path)
    node, seen = cluster.add_node(**NODE), []

    def kill(_):
        seen.append(1)
        if len(seen) == 4:
            cluster.remove_node(node, allow_graceful=False)

    made, (report,) = distributed(plan, on_ray, kill)
    assert made == expected
    assert report.threads == 3
    assert any("run again" in note for note in report.notes), report.notes


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing(cluster, tmp_path, number, code):
    files(tmp_path, megabytes=48)
    with started(cluster, tmp_path) as run:
        a_worker_at_work()
        begun = time.monotonic()
        run.send_signal(number)
        stdout, stderr = run.communicate(timeout=60)
        assert time.monotonic() - begun < 10
    assert (run.returncode, stdout) == (code, ""), stderr
    assert "interrupted; nothing was written" in stderr
    assert debris(tmp_path) == []
    assert not (tmp_path / "out.safetensors").exists()
    end = time.monotonic() + 10
    while workers() and time.monotonic() < end:
        time.sleep(0.1)
    assert workers() == []


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(cluster, tmp_path):
    files(tmp_path, megabytes=48)
    with started(cluster, tmp_path, "--continue") as run:
        journal = tmp_path / "out.safetensors.parts.swavg-partial" / "1.journal"
        while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
            time.sleep(0.01)
        run.kill()
        run.communicate()
    done = journal.read_bytes().count(b"\n") - 1
    with started(cluster, tmp_path, "--continue") as run:
        stdout, stderr = run.communicate(timeout=60)
    assert (run.returncode, stdout) == (0, "out.safetensors\n"), stderr
    assert done >= 4
    assert (tmp_path / "out.safetensors").read_bytes() == made_locally(tmp_path)
    assert debris(tmp_path) == []


@contextlib.contextmanager
def node_that_does_not_see(folder, cluster):
    """Of another mount namespace, in which an empty file system lies over the folder."""
    start = (
        f"{Path(sys.executable).parent}/ray start --block --num-cpus=1 --include-log-monitor=false"
    )
    script = f"mount -t tmpfs none {folder} && exec {start} --address={cluster.address}"
    before = alive(cluster)
    run = subprocess.Popen(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: alive(cluster) > before, run)
        yield
    finally:
        run.terminate()
        run.wait(30)
        wait_for(lambda: alive(cluster) == before)


def alive(cluster):
    return sum(node["Alive"] for node in cluster.global_state.node_table())


def wait_for(condition, run=None):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        assert run is None or run.poll() is None, run.returncode
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", ["in", "out"])
def test_a_node_that_does_not_see_the_files_is_named(cluster, tmp_path, hidden):
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    paths, out = files(tmp_path / "in"), tmp_path / "out" / "x.safetensors"
    with node_that_does_not_see(tmp_path / hidden, cluster):
        found = process("average", *paths, "-o", out, "--engine", "ray",
                        "--address", cluster.address)  # fmt: skip
    path = tmp_path / "out" if hidden == "out" else paths[0]
    missing = "this folder" if hidden == "out" else "what is here: no such file"
    assert (found.returncode, found.stdout) == (5, ""), found.stderr
    assert f"{path}: node {socket.gethostname()} (" in found.stderr
    assert f") of the Ray cluster does not see {missing}\n" in found.stderr
    assert "--part 1/8" in found.stderr
    assert debris(tmp_path) == []


def test_what_a_node_lacks():
    assert look("0.0", b"", "") == Problem(
        "", f"has swavg {swavg.__version__}, and this machine 0.0"
    )


def test_a_node_that_comes_later_is_asked_too(tmp_path):
    """Without a cluster: what a worker does before its first task."""
    plan = planned(files(tmp_path, megabytes=1), tmp_path / "out.safetensors")
    work = Work(plan, None, [], [str(tmp_path / "token")], str(tmp_path))
    with pytest.raises(OutputError, match=f"{tmp_path}: node .* does not see this folder"):
        run_number(pickle.dumps(work), "job", 0)
    (tmp_path / "token").touch()
    os.utime(tmp_path / "1.safetensors", ns=(1, 1))
    with pytest.raises(OutputError, match=r"1.safetensors: node .* not see what is here: changed"):
        run_number(pickle.dumps(work), "job", 0)


@pytest.mark.slow
def test_inputs_may_lie_in_an_object_store(tmp_path, monkeypatch):
    """The keys are those of the environment in which the nodes were started."""
    from object_stores import Bucket, s3_server

    paths = files(tmp_path)
    with s3_server() as endpoint:
        bucket = Bucket(endpoint)
        for name, value in bucket.env.items():
            monkeypatch.setenv(name, value)
        urls = [bucket.put(path) for path in paths]
        with two_nodes() as cluster:
            plan = planned(urls, tmp_path / "out.safetensors")
            expected = local(plan, tmp_path)
            made, _ = distributed(plan, Resources(engine="ray", address=cluster.address))
            assert made == expected
            plan = planned(paths, bucket.url("out.safetensors"))
            with pytest.raises(RequestError, match="no object store"):
                swavg.execute(plan, Resources(engine="ray", address=cluster.address))
