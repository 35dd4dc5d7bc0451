"""What the system refuses or fails at ends in an error that names the file, or does not matter."""

import errno
import os
import re

import numpy as np
import pytest
import torch
from checkpoints import save, state
from command_line import process, swavg

from swavg.engine import executors
from swavg.engine.kernels import cpu


@pytest.fixture
def inputs(tmp_path):
    """Pairs of each kind: a.safetensors, a.pt, a folder a, a legacy a.bin."""
    for seed, name in ((1, "a"), (2, "b")):
        save(tmp_path / f"{name}.safetensors", state(seed))
        save(tmp_path / name / "model.safetensors", state(seed))
        torch.save(state(seed), tmp_path / f"{name}.pt")
        torch.save(state(seed), tmp_path / f"{name}.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "out").mkdir()
    return tmp_path


def fail(monkeypatch, call, path, code, after=0):
    """Let an ``os`` call fail from the ``after``-th on for what ``path`` leads to."""
    inode, seen = os.stat(path).st_ino, []
    original = getattr(os, call)

    def failing(what, *rest, **more):
        try:
            ours = os.stat(what if what is not None else ".").st_ino == inode
        except (OSError, ValueError):
            ours = False
        if ours:
            seen.append(call)
            if len(seen) > after:
                if call == "close":
                    original(what)
                raise OSError(code, os.strerror(code))
        return original(what, *rest, **more)

    monkeypatch.setattr(os, call, failing)
    return seen


KINDS = [".safetensors", ".pt", "", ".bin"]


@pytest.mark.parametrize("after", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_read_error_names_the_file(inputs, monkeypatch, kind, after):
    file = inputs / ("a/model.safetensors" if kind == "" else f"a{kind}")
    seen = fail(monkeypatch, "preadv", file, errno.EIO, after)
    found = swavg("average", f"a{kind}", f"b{kind}", "-o", f"out/c{kind}", cwd=inputs)
    if len(seen) <= after:
        return
    assert found.returncode == 4
    assert f"{file.relative_to(inputs)}: read error: Input/output error" in found.stderr
    assert os.listdir(inputs / "out") == []


@pytest.mark.parametrize("kind", [".safetensors", ".pt", ".bin"])
def test_a_short_read_is_continued(inputs, monkeypatch, kind):
    command = ["average", f"a{kind}", f"b{kind}", "-q", "-o"]
    assert swavg(*command, f"out/whole{kind}", cwd=inputs).returncode == 0
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, outs, at: preadv(fd, [outs[0][:7]], at))
    found = swavg(*command, f"out/short{kind}", cwd=inputs)
    assert (found.returncode, found.stderr) == (0, "")
    whole, short = ((inputs / "out" / f"{name}{kind}").read_bytes() for name in ("whole", "short"))
    assert whole == short


def test_a_series_with_an_unreadable_file_lists_the_others(inputs, monkeypatch):
    fail(monkeypatch, "preadv", inputs / "a.pt", errno.EIO)
    found = swavg("list", "a.pt", "b.pt", cwd=inputs)
    assert "Traceback" not in found.output
    assert "b.pt" in found.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_that_cannot_be_closed_does_not_matter(inputs, monkeypatch, kind):
    file = inputs / ("a/model.safetensors" if kind == "" else f"a{kind}")
    seen = fail(monkeypatch, "close", file, errno.EIO)
    found = swavg("average", f"a{kind}", f"b{kind}", "-o", f"out/c{kind}", cwd=inputs)
    assert seen
    assert found.returncode == 0, found.stderr


def test_a_folder_that_cannot_be_listed_is_an_error(inputs, monkeypatch):
    fail(monkeypatch, "listdir", inputs / "a", errno.EIO)
    found = swavg("average", "a", "b", "-o", "out/c", cwd=inputs)
    assert (found.returncode, "a: cannot be read: Input/output error" in found.stderr) == (4, True)


@pytest.mark.parametrize("after", range(0, 42, 3))
def test_a_folder_that_can_be_listed_no_more_is_an_error(inputs, monkeypatch, after):
    seen = fail(monkeypatch, "listdir", inputs / "a", errno.EIO, after)
    found = swavg("average", "a", "b", "-o", "out/c", cwd=inputs)
    assert found.returncode == (4 if len(seen) > after else 0)
    assert ("a: cannot be read" in found.stderr) == (len(seen) > after)


def test_an_output_folder_that_cannot_be_looked_into_is_not_replaced(inputs, monkeypatch):
    save(inputs / "out" / "c" / "model.safetensors", state(3))
    before = (inputs / "out" / "c" / "model.safetensors").read_bytes()
    fail(monkeypatch, "scandir", inputs / "out" / "c", errno.EIO)
    found = swavg("average", "a", "b", "-o", "out/c", "--force", cwd=inputs)
    assert (found.returncode, "out/c: cannot be looked into" in found.stderr) == (5, True)
    assert (inputs / "out" / "c" / "model.safetensors").read_bytes() == before


def test_free_space_that_cannot_be_told_does_not_matter(inputs, monkeypatch):
    seen = fail(monkeypatch, "statvfs", inputs / "out", errno.EACCES)
    found = swavg("average", "a.pt", "b.pt", "-o", "out/c.pt", cwd=inputs)
    assert seen
    assert found.returncode == 0, found.stderr


def test_a_current_folder_that_cannot_be_told_matters_only_for_the_output(inputs, monkeypatch):
    def getcwd():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.chdir(inputs)
    monkeypatch.setattr(os, "getcwd", getcwd)
    import swavg as library
    from swavg.errors import OutputError
    from swavg.series import discover
    from swavg.storage.paths import absolute

    assert absolute("a.pt") == "a.pt"
    assert discover(["a.pt", "b.pt"]).paths == ("a.pt", "b.pt")
    with pytest.raises(OutputError, match="cannot be written"):
        library.average(["a.pt", "b.pt"], output="out/c.pt")


SHORT = [
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((1,), np.dtype("u1")),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ImportError("x.so: failed to map segment from shared object"),
]


@pytest.mark.parametrize("error", SHORT, ids=lambda error: type(error).__name__)
def test_too_little_memory_is_said(inputs, monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(cpu, "CpuKernel", refuse)
    found = swavg("average", "a.pt", "b.pt", "-o", "out/c.pt", "--json", cwd=inputs)
    assert found.returncode == 1
    assert "error There is not enough memory." in found.stderr
    assert '"kind": "memory"' in found.stdout
    assert os.listdir(inputs / "out") == []


def test_other_errors_of_the_system_are_bugs(inputs, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(cpu, "CpuKernel", refuse)
    with pytest.raises(OSError, match="Bad file descriptor"):
        swavg("average", "a.pt", "b.pt", "-o", "out/c.pt", cwd=inputs)
    assert os.listdir(inputs / "out") == []


@pytest.mark.slow
@pytest.mark.parametrize("mebibytes", [90, 120, 150])
def test_a_limit_of_memory_leaves_nothing(inputs, mebibytes):
    """NumPy's library ends a process that is short of memory: before there is any file."""
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (mebibytes << 20, mebibytes << 20))

    found = process("average", "a.safetensors", "b.safetensors", "-o", "out/c", cwd=inputs,
                    preexec_fn=limit)  # fmt: skip
    assert found.returncode in (0, 1)
    assert "Traceback" not in found.stderr
    assert os.listdir(inputs / "out") == (["c"] if found.returncode == 0 else [])


def test_refused_forks_and_threads_leave_the_work_to_this_process(inputs, monkeypatch):
    def refuse(*_):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    monkeypatch.setattr(executors.threading, "_start_new_thread", refuse_thread)
    found = swavg("average", "a.pt", "b.pt", "-o", "out/c.pt", "--threads", "4", cwd=inputs)
    assert found.returncode == 0, found.stderr
    assert re.search(r"averaged 2 checkpoints", found.stderr)


def refuse_thread(*_):
    raise RuntimeError("can't start new thread")
