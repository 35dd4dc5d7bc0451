"""No output ever touches an input, whatever the names and mounts; nor files of others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swavg.errors import OutputError
from swavg.storage.protect import (
    Input,
    check_not_input,
    check_only_ours,
    check_stdout_not_input,
)
from swavg.storage.sources import LocalFile, Memory


def file_input(path: Path) -> Input:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(path):
        path.write_bytes(b"weights")
    return str(path), [LocalFile.find(str(path))]


def folder_input(path: Path, *names: str) -> Input:
    sources = [file_input(path / name)[1][0] for name in names or ("model.safetensors",)]
    return str(path), sources


def refused(path: Path | str, inputs: list[Input], problem: str) -> None:
    with pytest.raises(OutputError, match=problem) as caught:
        check_not_input(str(path), inputs)
    assert caught.value.exit_code == 5


def same(path: Path) -> Path:
    return path


def hard_link(path: Path) -> Path:
    os.link(path, path.with_name("link"))
    return path.with_name("link")


def symbolic_link(path: Path) -> Path:
    path.with_name("link").symlink_to(path.name)
    return path.with_name("link")


def roundabout(path: Path) -> Path:
    return path.parent / ".." / path.parent.name / path.name


@pytest.mark.parametrize("name", [same, hard_link, symbolic_link, roundabout])
def test_an_output_is_no_input(tmp_path: Path, name: Callable[[Path], Path]) -> None:
    inputs = [file_input(tmp_path / "a"), file_input(tmp_path / "b")]
    refused(name(tmp_path / "b"), inputs, "is an input")


def test_what_an_input_links_to_is_an_input(tmp_path: Path) -> None:
    file_input(tmp_path / "blobs" / "x")
    (tmp_path / "middle").symlink_to("blobs/x")
    (tmp_path / "link").symlink_to("middle")
    inputs = [file_input(tmp_path / "link")]
    for path in ("link", "middle", "blobs/x"):
        refused(tmp_path / path, inputs, "is an input")
    refused(tmp_path / "blobs", inputs, "holds the input")


def test_writing_beside_input_files_is_allowed(tmp_path: Path) -> None:
    inputs = [file_input(tmp_path / "run" / "a"), file_input(tmp_path / "run" / "b")]
    (tmp_path / "run" / "c").write_bytes(b"weights")
    for path in ("run/c", "run/new", "run/folder/new", "elsewhere"):
        check_not_input(str(tmp_path / path), inputs)


def test_nothing_is_written_into_an_input_folder(tmp_path: Path) -> None:
    inputs = [folder_input(tmp_path / "run" / "a", "model.safetensors", "deep/more.safetensors")]
    for path in ("run/a/new", "run/a/deep/new", "run/a/new/new", "run/a/model.safetensors"):
        refused(tmp_path / path, inputs, "lies in the input")
    (tmp_path / "link").symlink_to("run/a")
    refused(tmp_path / "link" / "new", inputs, "lies in the input")
    for path in ("run/a", "run", "link"):
        refused(tmp_path / path, inputs, "holds the input")
    check_not_input(str(tmp_path / "run" / "ab"), inputs)


def test_a_folder_of_links_holds_an_input(tmp_path: Path) -> None:
    """As in the cache of the Hugging Face hub: shards are links to blobs elsewhere."""
    file_input(tmp_path / "blobs" / "x")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/x")
    inputs = [file_input(tmp_path / "snapshot" / "model.safetensors")]
    for path in ("snapshot", "blobs"):
        refused(tmp_path / path, inputs, "holds the input")


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder ``m`` looks as if ``W`` were mounted there: same devices and inodes below."""
    (tmp_path / "W").mkdir()
    stat, place, real = os.stat, str(tmp_path.resolve() / "m"), str(tmp_path.resolve() / "W")

    def faked(path: object, *more: object, **options: object) -> os.stat_result:
        shown = os.fspath(path)  # type: ignore[call-overload]
        if shown == place or shown.startswith(place + "/"):
            shown = real + shown[len(place) :]
        return stat(shown, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", faked)
    return tmp_path


def test_an_input_is_known_where_it_is_mounted_too(mounted: Path) -> None:
    inputs = [folder_input(mounted / "W" / "f1"), file_input(mounted / "W" / "a")]
    for path, problem in {
        "m/f1": "the input",
        "m/f1/new": "lies in the input",
        "m/a": "is an input",
        "m": "the input",
    }.items():
        refused(mounted / path, inputs, problem)
    check_not_input(str(mounted / "m" / "new"), inputs)
    check_not_input(str(mounted / "m" / "new" / "new"), inputs)


_MOUNTED = """
import sys
from swavg.errors import OutputError
from swavg.storage.protect import check_not_input
from swavg.storage.sources import LocalFile
inputs = [("W/f", [LocalFile.find("W/f/model.safetensors")]), ("W/a", [LocalFile.find("W/a")])]
for path in sys.argv[1:]:
    try:
        check_not_input(path, inputs)
        print(path, "allowed")
    except OutputError as error:
        print(error.message)
"""


def test_an_input_seen_through_a_real_mount(tmp_path: Path) -> None:
    """Without the right to mount, the test above has to do."""
    folder_input(tmp_path / "W" / "f")
    file_input(tmp_path / "W" / "a")
    (tmp_path / "m").mkdir()
    mount = f'mount --bind W m && exec {sys.executable} -c "$0" m/f m/f/new m/a m m/new'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, _MOUNTED],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    if done.returncode and not done.stdout:
        pytest.skip(f"cannot mount here: {done.stderr}")
    assert done.stdout.splitlines() == [
        "m/f: holds the input W/f",
        "m/f/new: lies in the input W/f",
        "m/a: is an input",
        "m: holds the input W/f",
        "m/new allowed",
    ]


def test_bytes_of_this_process_are_nowhere(tmp_path: Path) -> None:
    memory = Memory("statistics", memoryview(b"abc"))
    check_not_input(str(tmp_path / "out"), [(str(tmp_path / "a"), [memory])])


def test_a_current_folder_that_is_gone_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [file_input(tmp_path / "a")]
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    refused("out", inputs, "No such file or directory")


_STDOUT = """
import sys
from swavg.storage.protect import check_stdout_not_input
from swavg.storage.sources import LocalFile
check_stdout_not_input([("a", [LocalFile.find("a"), LocalFile.find("b")])])
"""


def test_standard_output_is_no_input(tmp_path: Path) -> None:
    for name in "abc":
        file_input(tmp_path / name)
    for name in "abc":
        with (tmp_path / name).open("ab") as stdout:
            done = subprocess.run(
                [sys.executable, "-c", _STDOUT],
                cwd=tmp_path,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
        assert (f"standard output: is the input {name}" in done.stderr) == (name != "c")


def test_a_closed_standard_output_is_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    stdout = os.fdopen(write, "w")
    monkeypatch.setattr("sys.stdout", stdout)
    os.close(write)
    check_stdout_not_input([])
    monkeypatch.undo()
    os.dup2(os.open(os.devnull, os.O_WRONLY), write)
    stdout.close()


def stem(name: str) -> str | None:
    base, _, suffix = name.partition(".")
    return base.split("-")[0] if suffix.startswith("safetensors") else None


NAMES = ["model-1.safetensors", "model.safetensors.index.json", "config.json"]


@pytest.mark.parametrize(
    ("names", "foreign"),
    [
        ([], []),
        (["model-1.safetensors", "config.json"], []),
        (["model-7.safetensors"], []),
        (["step-100.safetensors"], ["step-100.safetensors"]),
        (["notes.md", "config.json"], ["notes.md"]),
        (["model.safetensors/"], []),
        (["model-7.safetensors/"], ["model-7.safetensors"]),
        (["e", "d", "c", "b", "a"], ["a, b, c, d and 1 more"]),
    ],
)
def test_only_an_older_checkpoint_is_replaced(
    tmp_path: Path, names: list[str], foreign: list[str]
) -> None:
    for name in names:
        if name.endswith("/"):
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_text("")
    written = [*NAMES, "model.safetensors"]
    if not foreign:
        check_only_ours(str(tmp_path), written, stem, force=True)
        return
    with pytest.raises(OutputError, match="holds what the new checkpoint does not") as caught:
        check_only_ours(str(tmp_path), written, stem, force=True)
    assert caught.value.problem.endswith(f": {foreign[0]}")


def test_a_folder_that_cannot_be_looked_into_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be looked into: No such file"):
        check_only_ours(str(tmp_path / "gone"), NAMES, stem, force=True)
