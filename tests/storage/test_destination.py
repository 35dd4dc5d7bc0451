"""What would keep outputs from their names is refused before any work."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from swavg.errors import OutputError, OutputExistsError
from swavg.storage.destination import (
    Destination,
    check_destination,
    check_destinations,
    destination,
    is_stream,
    parent,
)


def test_what_would_fail_later_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old").write_text("")
    with pytest.raises(OutputExistsError, match="exists already") as caught:
        check_destination(tmp_path / "old", 0, force=False)
    assert (caught.value.exit_code, "force=True" in str(caught.value)) == (7, True)
    check_destination(tmp_path / "old", 0, force=True)
    check_destination(tmp_path / "new" / "deep" / "a", 0, force=False)
    with pytest.raises(OutputError, match=r"cannot be made: '.*old' is no folder"):
        check_destination(tmp_path / "old" / "a", 0, force=False)
    with pytest.raises(OutputError, match=r"needs [\d,]+ bytes"):
        check_destination(tmp_path / "new" / "a", 1 << 62, force=False)
    with pytest.raises(OutputError, match=r"needs [\d,]+ bytes, and only [\d,]+ are free"):
        check_destination(tmp_path / "a", 1 << 62, force=False)
    with pytest.raises(OutputError, match="File name too long"):
        check_destination(tmp_path / ("x" * 300), 0, force=False)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="leads back to itself"):
        check_destination(tmp_path / "loop", 0, force=True)
    with pytest.raises(OutputError, match="NUL byte"):
        check_destination("a\0b", 0, force=True)
    # Root may write everywhere, so that the system's answer is played.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="is not writable"):
        check_destination(tmp_path / "a", 0, force=False)
    assert sorted(os.listdir(tmp_path)) == ["loop", "old"]


@pytest.mark.parametrize("force", [False, True])
def test_a_file_and_a_folder_never_replace_each_other(tmp_path: Path, force: bool) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        check_destination(tmp_path / "file", 0, force=force, folder=True)
    with pytest.raises(OutputError):
        check_destination(tmp_path / "folder", 0, force=force)


def test_a_full_statistic_of_a_disk_is_no_condition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "statvfs", denied)
    check_destination(tmp_path / "a", 1 << 62, force=False)


def test_a_current_folder_that_is_gone_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for folder in (False, True):
        with pytest.raises(OutputError, match="the current folder is gone"):
            check_destinations([Destination("a", folder, False)], [1])
        with pytest.raises(OutputError, match="the current folder is gone"):
            check_destinations([Destination("o/a", folder, False)], [1], inside="o")


def outputs(folder: Path, **more: Any) -> list[Destination]:
    return [Destination(str(folder / name), False, more.get("force", False)) for name in "ab"]


def test_outputs_that_fit_alone_must_fit_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = os.statvfs(tmp_path)
    free = room.f_bavail * room.f_frsize
    half = free // 2 + free // 8
    check_destinations(outputs(tmp_path)[:1], [half])
    with pytest.raises(OutputError, match=r"needs [\d,]+ bytes, and only"):
        check_destinations(outputs(tmp_path), [half, half])
    with pytest.raises(OutputError, match=r"needs [\d,]+ bytes, and only"):
        check_destinations(outputs(tmp_path / "new"), [half, half], inside=str(tmp_path / "new"))


def test_a_stream_may_only_be_a_single_output(tmp_path: Path) -> None:
    stream = Destination("/dev/null", False, False)
    check_destinations([stream], [1 << 62])
    with pytest.raises(OutputError, match="can only be a single output"):
        check_destinations([*outputs(tmp_path), stream], [1, 1, 1])


def test_a_new_folder_must_be_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    new = tmp_path / "made" / "too" / "new"
    check_destinations(outputs(new), [1, 1], inside=str(new))
    with pytest.raises(OutputError, match="cannot be made: Not a directory"):
        check_destinations(outputs(tmp_path), [1, 1], inside=str(tmp_path / "file" / "new"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(OutputError, match="is not writable"):
            check_destinations(outputs(new), [1, 1], inside=str(new))
    new.mkdir(parents=True)
    (new / "b").write_text("")
    with pytest.raises(OutputExistsError):
        check_destinations(outputs(new), [1, 1], inside=str(new))
    check_destinations(outputs(new, force=True), [1, 1], inside=str(new))


def test_a_link_leads_to_where_the_output_lies(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("there")
    assert destination(tmp_path / "link") == str(tmp_path.resolve() / "there")
    assert destination(tmp_path / "there") == str(tmp_path / "there")


@pytest.mark.parametrize(
    ("path", "folder"), [("a", "."), ("/a", "/"), ("b/a", "b"), ("b/a/", "b"), ("a/", ".")]
)
def test_each_path_has_a_folder(path: str, folder: str) -> None:
    assert parent(path) == folder


def test_streams_are_fifos_and_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    paths = [tmp_path / "pipe", tmp_path / "file", tmp_path, tmp_path / "no", Path("/dev/null")]
    assert list(map(is_stream, paths)) == [True, False, False, False, True]


@pytest.mark.parametrize("other", ["./a", "link", "new/../a"])
def test_two_outputs_in_one_place_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("a")
    Path("new").mkdir()
    pair = [Destination(path, False, True) for path in ("a", other)]
    with pytest.raises(OutputError, match="is where another output goes already"):
        check_destinations(pair, [1, 1])
    check_destinations([pair[0], Destination("b", False, True)], [1, 1])


@pytest.mark.parametrize("url", ["s3://bucket/a", "https://host/a", "ftp://host/a", "s3:/bucket/a"])
def test_a_url_is_no_path_of_this_machine(url: str) -> None:
    with pytest.raises(OutputError, match="paths of this machine only"):
        check_destination(url, 1, force=True)
