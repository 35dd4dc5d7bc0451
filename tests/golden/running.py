"""Runs golden cases in this process and says what came of them, as plain values.

Only what users see is looked at: the command line's exit codes and streams, and files. Nothing of
swavg is named here but ``swavg.cli.main`` and the version, which is fixed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
INPUTS = HERE / "inputs"
EXPECTED = HERE / "expected"
VERSION = "0.golden"

# Bytes, text, a file or folder of inputs/, or what makes the bytes.
Source = bytes | str | Path | Callable[[], bytes]
# A command line; one with standard input; or a call in the folder, for what has no command.
Command = str | tuple[str, bytes] | Callable[[], object]


@dataclass(frozen=True)
class Case:
    """Inputs by path, and commands that are run in their folder one after the other.

    ``intended`` says what is known to become different; the test does not read it.
    """

    group: str
    name: str
    inputs: Mapping[str, Source]
    commands: Sequence[Command]
    marks: Sequence[str] = ()
    intended: str = ""

    @property
    def id(self) -> str:
        return f"{self.group}/{self.name}"


@dataclass
class _Streams:
    """What a run has written."""

    out: bytes = b""
    err: bytes = b""


def run(case: Case, folder: Path, version: str = VERSION) -> dict[str, object]:
    """Run the commands in ``folder``, whose name they may show; what they printed and wrote."""
    folder.mkdir()
    for name, source in case.inputs.items():
        _put(folder / name, source)
    before = _files(folder)
    runs = []
    with _settings(folder, version):
        for command in case.commands:
            runs.append(_run(command, folder))
    after = _files(folder)
    written = {name: text for name, text in after.items() if before.get(name) != text}
    gone = {name: "gone" for name in before if name not in after}
    found: dict[str, object] = json.loads(json.dumps({"runs": runs, "files": written | gone}))
    return found


def pretty(value: object, width: int = 100, indent: str = "") -> str:
    """JSON with a line for each value, unless several fit in one."""
    text = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(text) <= width or not value or not isinstance(value, (dict, list)):
        return text
    deeper = indent + " "
    if isinstance(value, dict):
        parts = [
            f"{deeper}{json.dumps(key, ensure_ascii=False)}: {pretty(entry, width, deeper)}"
            for key, entry in value.items()
        ]
    else:
        parts = [f"{deeper}{pretty(entry, width, deeper)}" for entry in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{begin}\n" + ",\n".join(parts) + f"\n{indent}{end}"


def _put(path: Path, source: Source) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Path):
        if (INPUTS / source).is_dir():
            shutil.copytree(INPUTS / source, path)
        else:
            shutil.copyfile(INPUTS / source, path)
    elif isinstance(source, str):
        path.write_text(source)
    else:
        path.write_bytes(source if isinstance(source, bytes) else source())


def _files(folder: Path) -> dict[str, str]:
    """Each file's size and digests, and folders that are empty."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file():
            found[name] = _digest(path.read_bytes())
        elif path.is_dir() and not any(path.iterdir()):
            found[f"{name}/"] = "empty"
    return found


def _digest(data: bytes) -> str:
    """Size and SHA-256; of a safetensors file also that of what lies behind its header."""
    text = f"{len(data)} bytes {hashlib.sha256(data).hexdigest()}"
    end = 8 + int.from_bytes(data[:8], "little")
    if data[8:9] == b"{" and end <= len(data):
        text += f" data {hashlib.sha256(data[end:]).hexdigest()[:16]}"
    return text


def _run(command: Command, folder: Path) -> dict[str, object]:
    if callable(command):
        given = getattr(command, "args", ())
        name = getattr(command, "func", command).__name__
        with _redirected(b"", _Streams()):
            value = command()
        return {"call": " ".join([name, *map(str, given)]), "value": value}
    line, stdin = (command, b"") if isinstance(command, str) else command
    code, streams = _main(shlex.split(line), stdin)
    found: dict[str, object] = {"run": line, "exit": code}
    if streams.out:
        found["stdout"] = _stdout(streams.out, folder)
    if streams.err:
        found["stderr"] = _text(streams.err, folder)
    return found


def _main(arguments: list[str], stdin: bytes) -> tuple[int, _Streams]:
    """The exit code and the streams, which are real files, as a process has them."""
    from swavg.cli import main

    streams = _Streams()
    with _redirected(stdin, streams):
        try:
            main(arguments)
        except SystemExit as stop:
            code = stop.code
        except Exception:
            # What the interpreter does with a bug.
            print(traceback.format_exc().splitlines()[-1], file=sys.stderr)
            code = 1
    assert isinstance(code, int)
    return code, streams


@contextmanager
def _redirected(stdin: bytes, streams: _Streams) -> Iterator[None]:
    own = sys.stdin, sys.stdout, sys.stderr
    for stream in own[1:]:
        stream.flush()
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        given.write(stdin)
        given.seek(0)
        kept = [os.dup(number) for number in (0, 1, 2)]
        try:
            for number, file in enumerate((given, out, err)):
                os.dup2(file.fileno(), number)
            sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
            try:
                yield
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
        finally:
            sys.stdin, sys.stdout, sys.stderr = own
            for number, old in enumerate(kept):
                os.dup2(old, number)
                os.close(old)
        for name, file in (("out", out), ("err", err)):
            file.seek(0)
            setattr(streams, name, file.read())


@contextmanager
def _settings(folder: Path, version: str) -> Iterator[None]:
    """The folder is the current one; width, version, signals and warnings are those of a process
    of its own with ``COLUMNS=100``. Nothing waits for the disk."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    environment, current, real = dict(os.environ), os.getcwd(), _version(version)
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        os.environ.pop(name, None)
    os.environ["COLUMNS"] = "100"
    syncs, os.fsync, os.fdatasync = (os.fsync, os.fdatasync), _no_sync, _no_sync
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            yield
    finally:
        os.chdir(current)
        os.fsync, os.fdatasync = syncs
        os.environ.clear()
        os.environ.update(environment)
        _version(real)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def _no_sync(fd: int) -> None:
    """Does nothing."""


def _version(text: str) -> str:
    """Set the version wherever it was imported to; the one before."""
    import swavg

    before = swavg.__version__
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "swavg" and "__version__" in vars(module):
            module.__version__ = text
    return before


_CHANGING = [
    (re.compile(r"(?<= in )\d+\.\d\d s(, [\d.]+ [kMG]?B/s read)?"), "<seconds>"),
    (re.compile(r"(?<=at least )[\d,]+(?= are needed)"), "<memory>"),
    (re.compile(r"^buffers  .*$", re.MULTILINE), "buffers   <memory and workers>"),
]


def _text(data: bytes, folder: Path) -> object:
    """Text as a list of lines, or bytes as a digest; without what no two runs share."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return _digest(data)
    text = text.replace(str(folder), "<folder>")
    for pattern, instead in _CHANGING:
        text = pattern.sub(instead, text)
    lines = text.removesuffix("\n").split("\n")
    assert len(lines) < 400, "a case prints too much"
    if not text.endswith("\n"):
        lines[-1] += "<no newline>"
    return lines[0] if len(lines) == 1 else lines


def _stdout(data: bytes, folder: Path) -> object:
    """JSON as values, other output as text."""
    if data[:1] in (b"{", b"["):
        try:
            return {"json": report(json.loads(data.replace(str(folder).encode(), b"<folder>")))}
        except ValueError:
            pass
    return _text(data, folder)


def report(value: object) -> object:
    """A report without seconds, memory and workers, and with distances to 1e-6."""
    if isinstance(value, list):
        return [report(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, object] = {}
    for key, entry in value.items():
        if key in ("seconds", "memory", "threads") or (key == "pooled" and entry == 0):
            continue
        near = key in ("distance", "relative_distance", "cosine") and isinstance(entry, float)
        found[key] = round(entry, 6) if near else report(entry)
    return found
