"""Outputs that several runs make: by parts, and by a run that goes on where one was killed."""

import errno
import json
import os
import shutil
import signal
import subprocess
import time
import zlib
from pathlib import Path

import make
import numpy as np
import pytest
from command_line import SWAVG, done, swavg

from swavg.engine.average import prepare
from swavg.engine.parts import Part, proceed
from swavg.engine.resources import Resources
from swavg.errors import InputError, OutputError, RequestError
from swavg.planning.row import Row
from swavg.storage.journals import journals_of
from swavg.storage.temporary import Kept

MIB = 1 << 20


@pytest.fixture
def inputs(tmp_path):
    """Three files of 5.5 MiB: six tasks."""
    zeros = ("F32", (MIB // 4,), bytes(MIB))
    for number in range(3):
        random = np.random.default_rng(number)
        data = {f"layer.{i}": random.standard_normal(3 * MIB // 8, np.float32) for i in range(3)}
        packed = {k: ("F32", v.shape, v.tobytes()) for k, v in data.items()}
        counter = np.int64(number).tobytes()
        (tmp_path / f"{number}.safetensors").write_bytes(
            make.packed({**packed, "n": ("I64", (), counter), "z": zeros})
        )
    return tmp_path


AVERAGE = ["average", "0.safetensors", "1.safetensors", "2.safetensors"]
SWEEP = ["sweep", *AVERAGE[1:], "-r", "uniform", "-r", "ema:decay=0.5"]
CALLS = {
    "a file": ([*AVERAGE, "-o"], "out.safetensors"),
    "a file of PyTorch's": ([*AVERAGE, "--format", "torch", "-o"], "out.pt"),
    "shards": ([*AVERAGE, "--max-shard-size", "2MiB", "-o"], "out"),
    "a distributed checkpoint": ([*AVERAGE, "--format", "dcp", "-o"], "out"),
    "a sweep": ([*SWEEP, "-d"], "out"),
}


def content(path):
    """The bytes of a file, or of the files of a folder by name."""
    if path.is_file():
        return path.read_bytes()
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*"))}


def left(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(".swavg-partial"))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_parts_in_any_order_make_the_bytes_of_one_run(inputs, call, order):
    args, name = call
    whole = json.loads(done(*args, f"whole-{name}", "--json", cwd=inputs).stdout)
    for number in order:
        finished = done(*args, name, "--part", f"{number}/3", cwd=inputs)
        assert finished.stdout == ""
        assert not (inputs / name).exists()
    finished = done(*args, name, "--finish", "--json", cwd=inputs)
    assert content(inputs / name) == content(inputs / f"whole-{name}")
    for one, other in zip(*([r] if isinstance(r, dict) else r for r in
                            (whole, json.loads(finished.stdout))), strict=True):  # fmt: skip
        for fact in ("inputs", "tensors", "written", "read", "differing_integers", "warnings"):
            assert one[fact] == other[fact]
    assert left(inputs) == []


def test_a_part_is_done_once_and_again_if_its_bytes_are_lost(inputs):
    done(*AVERAGE, "-o", "whole.st", cwd=inputs)
    args = [*AVERAGE, "-o", "out.st"]
    done(*args, "--part", "1/2", cwd=inputs)
    kept = inputs / "out.st.swavg-partial"
    before = kept.stat().st_mtime_ns
    done(*args, "--part", "1/2", cwd=inputs)
    assert kept.stat().st_mtime_ns == before
    # Killed before its end, and half of what the journal tells of was lost with the power.
    journal = Path(journals_of(str(inputs / "out.st"))) / "1.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:5])
    with open(kept, "r+b") as file:
        file.seek(600_000)
        file.write(bytes(1000))
    done(*args, "--part", "1/2", cwd=inputs)
    done(*args, "--part", "2/2", cwd=inputs)
    done(*args, "--finish", cwd=inputs)
    assert content(inputs / "out.st") == content(inputs / "whole.st")


def test_a_part_writes_into_its_own_stretch_alone(inputs):
    done(*AVERAGE, "-o", "out.pt", "--format", "torch", "--part", "2/2", cwd=inputs)
    done(*AVERAGE, "-o", "whole.pt", "--format", "torch", cwd=inputs)
    made = (inputs / "out.pt.swavg-partial").read_bytes()
    assert made[: 3 * MIB] == bytes(3 * MIB)
    assert made[3 * MIB :].rstrip(b"\0") != b""


def test_more_parts_than_tasks(inputs):
    done(*AVERAGE, "-o", "whole.st", cwd=inputs)
    for number in range(1, 10):
        done(*AVERAGE, "-o", "out.st", "--part", f"{number}/9", cwd=inputs)
    done(*AVERAGE, "-o", "out.st", "--finish", cwd=inputs)
    assert content(inputs / "out.st") == content(inputs / "whole.st")


def test_parts_that_are_missing_are_named(inputs):
    found = swavg(*AVERAGE, "-o", "out.st", "--finish", cwd=inputs)
    assert found.returncode == 2
    assert "No part of out.st is there" in found.stderr
    assert "such as --part 1/8 to --part 8/8." in found.stderr
    done(*AVERAGE, "-o", "out.st", "--part", "2/4", cwd=inputs)
    found = swavg(*AVERAGE, "-o", "out.st", "--finish", cwd=inputs)
    assert found.returncode == 2
    assert "Parts 1,3-4 of 4 are not done" in found.stderr
    assert "--part 1/4" in found.stderr
    assert not (inputs / "out.st").exists()


DIFFERENT = {
    "weights": (["--weights", "0.5", "0.25", "0.25"], "weights", "Say what the other parts said"),
    "options": (["--exclude", "layer.0"], "options", "Say what the other parts said"),
    "what is measured": (
        ["--no-geometry"],
        "distances true there",
        "Say what the other parts said",
    ),
    "number": (["--part", "2/3"], "parts 2 there, 3 here", "Go on with --part I/2"),
}


@pytest.mark.parametrize(("more", "said", "way"), DIFFERENT.values(), ids=DIFFERENT)
def test_parts_of_different_runs_are_refused(inputs, more, said, way):
    done(*AVERAGE, "-o", "out.st", "--part", "1/2", cwd=inputs)
    found = swavg(*AVERAGE, "-o", "out.st", "--part", "2/2", *more, cwd=inputs)
    assert found.returncode == 4
    assert said in found.stderr
    anew = "rm -r out.st.parts.swavg-partial out.st.swavg-partial"
    assert f"{way}, choose another --output, or begin anew: {anew}" in found.stderr
    subprocess.run(anew.split(), cwd=inputs, check=True)
    done(*AVERAGE, "-o", "out.st", "--part", "1/1", cwd=inputs)


@pytest.mark.parametrize("step", [["--part", "2/2"], ["--finish"]])
def test_an_input_that_changed_between_parts_is_named_with_both_facts(inputs, step):
    done(*AVERAGE, "-o", "out.st", "--part", "1/2", cwd=inputs)
    size = (inputs / "1.safetensors").stat().st_size
    os.utime(inputs / "1.safetensors", (0, 1e9 + 0.25))
    found = swavg(*AVERAGE, "-o", "out.st", *step, cwd=inputs)
    assert found.returncode == 4
    assert "1.safetensors: has changed since the first part" in found.stderr
    assert f"{size:,} bytes of 2001-09-0" in found.stderr
    assert ":40.250 here" in found.stderr
    assert "Begin anew: rm -r out.st.parts.swavg-partial" in found.stderr


def test_other_inputs_are_named(inputs):
    done(*AVERAGE, "-o", "out.st", "--part", "1/2", cwd=inputs)
    found = swavg(*AVERAGE[:3], "-o", "out.st", "--part", "2/2", cwd=inputs)
    assert found.returncode == 4
    assert "'2.safetensors' there" in found.stderr
    assert "name those there, or give --to-step." in found.stderr


def test_bytes_that_are_gone_are_never_published_as_zeros(inputs):
    args = [*AVERAGE, "-o", "out.st"]
    for number in (1, 2):
        done(*args, "--part", f"{number}/2", cwd=inputs)
    os.unlink(inputs / "out.st.swavg-partial")
    for step in (["--finish"], ["--part", "1/2"]):
        found = swavg(*args, *step, cwd=inputs)
        assert found.returncode == 5
        assert "No such file" in found.stderr
    assert not (inputs / "out.st").exists()
    shutil.rmtree(journals_of(str(inputs / "out.st")))
    (inputs / "out.st.swavg-partial").write_bytes(b"old")
    found = swavg(*args, "--part", "1/2", cwd=inputs)
    assert found.returncode == 5
    assert "without the journals" in found.stderr


def test_a_part_does_not_make_anew_what_another_part_wrote_to(inputs):
    args = [*AVERAGE, "-o", "out.st"]
    done(*args, "--part", "1/2", cwd=inputs)
    os.unlink(inputs / "out.st.swavg-partial")
    found = swavg(*args, "--part", "2/2", cwd=inputs)
    assert found.returncode == 5
    assert "Begin anew: rm -r out.st.parts.swavg-partial\n" in found.stderr
    assert not (inputs / "out.st.swavg-partial").exists()


def test_a_sweep_whose_folder_was_made_between_its_parts_is_refused(inputs):
    done(*SWEEP, "-d", "out", "--part", "1/2", cwd=inputs)
    (inputs / "out").mkdir()
    found = swavg(*SWEEP, "-d", "out", "--part", "2/2", cwd=inputs)
    assert (found.returncode, "Begin anew: rm -r" in found.stderr) == (5, True)


def test_a_link_under_the_name_of_the_temporary_is_not_followed(inputs):
    done(*AVERAGE, "-o", "out.st", "--part", "1/2", cwd=inputs)
    kept = inputs / "out.st.swavg-partial"
    kept.rename(inputs / "other")
    kept.symlink_to("other")
    before = (inputs / "other").read_bytes()
    assert swavg(*AVERAGE, "-o", "out.st", "--part=2/2", cwd=inputs).returncode == 5
    assert (inputs / "other").read_bytes() == before


def test_what_is_done_is_finished_on_a_full_disk(inputs, monkeypatch):
    done(*AVERAGE, "-o", "out.st", "--part", "1/1", cwd=inputs)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(json, "dump", full)
    done(*AVERAGE, "-o", "out.st", "--part", "1/1", cwd=inputs)
    done(*AVERAGE, "-o", "out.st", "--finish", cwd=inputs)


@pytest.mark.parametrize("folder", [False, True])
def test_what_has_its_name_already_is_not_made_anew(tmp_path, folder):
    """By the second of two runs that give it its name."""
    target = str(tmp_path / "out")
    kept = Kept(target, shared=False)
    with pytest.raises(OutputError, match="No such file"):
        kept.create(folder=folder, shown=target)
    assert os.listdir(tmp_path) == []


def test_an_output_that_is_there_needs_force(inputs):
    done(*AVERAGE, "-o", "out.st", cwd=inputs)
    for step in ("--continue", "--part=1/1"):
        assert swavg(*AVERAGE, "-o", "out.st", step, cwd=inputs).returncode == 7
    done(*AVERAGE, "-o", "out.st", "--continue", "--force", cwd=inputs)
    assert left(inputs) == []


def lines_of(*values):
    """The lines of a journal, with the right checksums."""
    texts = [v if isinstance(v, bytes) else json.dumps(v).encode() for v in values]
    return b"".join(f"{zlib.crc32(text):08x} ".encode() + text + b"\n" for text in texts)


def values_of(journal):
    return [json.loads(line[9:]) for line in journal.read_bytes().splitlines()]


def test_a_task_that_was_done_again_is_counted_once(inputs):
    """Its bytes were lost, were made anew, and the run was killed once more."""
    args = [*AVERAGE, "-o", "out.st", "--part", "1/1"]
    done(*args, cwd=inputs)
    journal = Path(journals_of(str(inputs / "out.st"))) / "1.journal"
    head, first, *rest, _ = values_of(journal)
    journal.write_bytes(lines_of(head, first, *rest, first))
    done(*args, cwd=inputs)
    done(*args[:-2], "--finish", cwd=inputs)
    done(*AVERAGE, "-o", "whole.st", cwd=inputs)
    assert content(inputs / "out.st") == content(inputs / "whole.st")


@pytest.mark.parametrize("killed", [False, True])
def test_what_was_read_of_an_input_that_changed_is_not_taken_once_it_is_put_back(inputs, killed):
    changed, row = inputs / "1.safetensors", Row((0.5, 0.25, 0.25), (0, 1, 2))

    def plan(name):
        paths = [inputs / f"{number}.safetensors" for number in range(3)]
        return prepare(paths, [row], [inputs / name])

    proceed(plan("whole.st"), Resources())
    before, facts, told = changed.read_bytes(), changed.stat(), []

    def change(_progress):
        told.append(0)
        if len(told) == 2:
            with open(changed, "r+b") as file:
                file.seek(2 * MIB)
                file.write(bytes(3 * MIB))
        elif len(told) == 4 and killed:
            raise KeyboardInterrupt

    # How soon it is noticed is a matter of time.
    ends = (InputError, KeyboardInterrupt) if killed else InputError
    with pytest.raises(ends, match=r"changed while it was read|^$"):
        proceed(plan("out.st"), Resources(threads=1, processes=False), change)
    changed.write_bytes(before)
    os.utime(changed, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    proceed(plan("out.st"), Resources())
    assert content(inputs / "out.st") == content(inputs / "whole.st")


HOSTILE = {
    "no JSON": b"not json",
    "no object": [1],
    "deep": b"[" * 100_000,
    "no result": {"number": 0},
    "another task": {"number": 99},
    "another file": {"wrote": [[0, 5, 0, 10, 3]]},
    "behind the end": {"wrote": [[0, 0, 0, 1 << 50, 3]]},
    "before the beginning": {"wrote": [[0, 0, -5, 3, 3]]},
    "no place": {"wrote": 3},
    "no tensor": {"differing": [[0, 999]]},
    "no sums": {"distances": [[0, {}]]},
}


@pytest.mark.parametrize("told", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("step", ["--part=1/1", "--finish"])
def test_a_journal_that_no_run_has_written_is_damaged(inputs, told, step):
    args = [*AVERAGE, "-o", "out.st"]
    done(*args, "--part=1/1", cwd=inputs)
    journal = Path(journals_of(str(inputs / "out.st"))) / "1.journal"
    head, first, *rest = values_of(journal)
    if isinstance(told, dict) and len(told) == 1 and told != {"number": 0}:
        told = {**first, **told}
    journal.write_bytes(lines_of(head, told, *rest))
    found = swavg(*args, step, cwd=inputs)
    assert found.returncode == 5
    assert "1.journal: is damaged" in found.stderr
    assert not (inputs / "out.st").exists()
    subprocess.run(found.stderr.partition("Begin anew: ")[2].split(), cwd=inputs, check=True)
    done(*args, "--part=1/1", cwd=inputs)


def test_a_journal_that_lacks_tasks_is_not_complete(inputs):
    args = [*AVERAGE, "-o", "out.st"]
    done(*args, "--part=1/1", cwd=inputs)
    journal = Path(journals_of(str(inputs / "out.st"))) / "1.journal"
    head, _, *rest = values_of(journal)
    journal.write_bytes(lines_of(head, *rest))
    found = swavg(*args, "--finish", cwd=inputs)
    assert (found.returncode, "Part 1 of 1 is not done" in found.stderr) == (2, True)
    done(*args, "--part=1/1", cwd=inputs)
    done(*args, "--finish", cwd=inputs)


@pytest.mark.parametrize("text", [b"{}", b"[" * 100_000, b'{"parts": "2"}', b'{"parts": 0}',
                                  b'{"parts": 9999999999}', b'{"parts": 1, "inputs": 3}',
                                  b'{"parts": 1, "inputs": [[]]}'])  # fmt: skip
@pytest.mark.parametrize("step", ["--part=1/1", "--finish"])
def test_what_no_runs_agreed_on_is_damaged(inputs, text, step):
    done(*AVERAGE, "-o", "out.st", "--part=1/1", cwd=inputs)
    plan = Path(journals_of(str(inputs / "out.st"))) / "plan.json"
    facts = json.loads(plan.read_bytes())
    if b"inputs" in text:
        text = json.dumps(facts | json.loads(text)).encode()
    plan.write_bytes(text)
    found = swavg(*AVERAGE, "-o", "out.st", step, cwd=inputs)
    assert (found.returncode, "is damaged" in found.stderr) == (5, True)


@pytest.mark.parametrize("name", ["plan.json", "1.journal"])
@pytest.mark.parametrize(
    "make_other", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")]
)
def test_what_is_no_file_is_no_journal(inputs, name, make_other):
    done(*AVERAGE, "-o", "out.st", "--part=1/1", cwd=inputs)
    path = Path(journals_of(str(inputs / "out.st"))) / name
    path.unlink()
    make_other(path)
    for step in ("--part=1/1", "--finish"):
        found = swavg(*AVERAGE, "-o", "out.st", step, cwd=inputs)
        assert (found.returncode, "cannot be written" in found.stderr) == (5, True)


@pytest.mark.parametrize("link", [os.link, os.symlink])
@pytest.mark.parametrize("name", ["out.st.parts.swavg-partial/1.journal", "out.st.swavg-partial"])
def test_an_input_under_the_name_of_a_journal_or_temporary_is_not_written_to(inputs, link, name):
    done(*AVERAGE, "-o", "out.st", "--part=1/2", cwd=inputs)
    journal = Path(journals_of(str(inputs / "out.st"))) / "1.journal"
    journal.write_bytes(journal.read_bytes().splitlines(keepends=True)[0])
    (inputs / name).unlink()
    link(inputs / "0.safetensors", inputs / name)
    before = (inputs / "0.safetensors").read_bytes()
    assert swavg(*AVERAGE, "-o", "out.st", "--part=1/2", cwd=inputs).returncode == 5
    assert (inputs / "0.safetensors").read_bytes() == before


def test_streams_are_not_made_in_parts(inputs):
    found = swavg(*AVERAGE, "-o", "-", "--part", "1/2", cwd=inputs)
    assert found.returncode == 2
    assert "not a stream" in found.stderr


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "3", "1/2/3", "a/b", "-1/3", "1/100001", "1/" + "9" * 5000]
)
def test_what_is_no_part(text):
    with pytest.raises(RequestError, match="I/N"):
        Part.parse(text)


def test_an_empty_part_is_refused_before_anything_is_made(inputs):
    """As of a variable that is not set: it is not the whole."""
    found = swavg(*AVERAGE, "-o", "out.st", "--part", "", cwd=inputs)
    assert found.returncode == 2
    assert "--part is I/N" in found.stderr
    assert not (inputs / "out.st").exists()


def test_ways_to_run_exclude_each_other(inputs):
    found = swavg(*AVERAGE, "-o", "out.st", "--part", "1/2", "--finish", cwd=inputs)
    assert found.returncode == 2
    assert "--part and --finish exclude each other" in found.stderr


def test_a_value_that_is_refused_leaves_what_was_done(inputs):
    whole = inputs / "2.safetensors"
    data = bytearray(whole.read_bytes())
    data[-8:-4] = np.float32("nan").tobytes()
    whole.write_bytes(data)
    found = swavg(*AVERAGE, "-o", "out.st", "--continue", "--threads", "1", cwd=inputs)
    assert found.returncode == 6
    assert left(inputs) == ["out.st.parts.swavg-partial", "out.st.swavg-partial"]
    # The next run says what lies there, and one that goes on has another plan.
    found = swavg(*AVERAGE, "-o", "out.st", cwd=inputs)
    assert found.returncode == 6
    found = done(*AVERAGE, "-o", "out.st", "--allow-nonfinite", cwd=inputs)
    assert "out.st.swavg-partial is what a run began and did not end" in found.stderr
    assert "--continue goes on with it" in found.stderr


def test_a_listing_does_not_show_what_is_unfinished(inputs):
    done(*AVERAGE, "-o", "out.st", "--part", "1/2", cwd=inputs)
    found = json.loads(done("list", ".", "--json", cwd=inputs).stdout)
    assert "partial" not in json.dumps([each["path"] for each in found["checkpoints"]])


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(tmp_path):
    """With a signal that nobody can catch, at some place in the middle."""
    size = 96 * MIB
    for number in range(4):
        random = np.random.default_rng(number)
        values = random.integers(0, 1 << 15, size // 2, np.uint16)
        (tmp_path / f"{number}.st").write_bytes(
            make.packed({"x": ("BF16", (size // 2,), values.tobytes())})
        )
    args = ["average", "0.st", "1.st", "2.st", "3.st"]
    more = ["-q", "--threads", "1", "--no-geometry", "--allow-nonfinite"]
    done(*args, "-o", "whole.st", *more, cwd=tmp_path)
    target = str(tmp_path / "out.st")
    killed = 0
    for _ in range(3):
        journal = Path(journals_of(target)) / "1.journal"
        before = journal.stat().st_size if journal.exists() else 0
        run = subprocess.Popen([*SWAVG, *args, "-o", "out.st", "--continue", *more], cwd=tmp_path)
        while run.poll() is None and not (
            journal.exists() and journal.stat().st_size > before + 300
        ):
            time.sleep(0.002)
        run.send_signal(signal.SIGKILL)
        killed += run.wait() == -signal.SIGKILL
    assert killed == 3
    done(*args, "-o", "out.st", "--continue", *more, cwd=tmp_path)
    assert (tmp_path / "out.st").read_bytes() == (tmp_path / "whole.st").read_bytes()
    assert left(tmp_path) == []
