"""The command line, in this process or in one of its own."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from click.testing import CliRunner
from json_documents import documents

from swavg.cli import main

SWAVG = [sys.executable, "-m", "swavg"]


class _Main:
    """What click's runner calls: all of it, with signals, streams and exit codes."""

    name = "swavg"

    @staticmethod
    def main(args, prog_name, **_more):
        main(args)


def swavg(*args, cwd=None, stdin=None, env=None):
    """Run a command in this process; its exit code and streams. JSON must be as its schema says."""
    with contextlib.chdir(cwd or os.getcwd()):
        found = CliRunner().invoke(_Main(), [*map(str, args)], input=stdin, env=env)
    if not isinstance(found.exception, (SystemExit, type(None))):
        raise found.exception
    if "--json" in args and "--paths" not in args and "-h" not in args:
        documents(found.stdout)
    return SimpleNamespace(
        returncode=found.exit_code, stdout=found.stdout, stderr=found.stderr, output=found.output
    )


def done(*args, **more):
    """Run a command that must end well."""
    found = swavg(*args, **more)
    assert found.returncode == 0, found.stderr
    return found


def process(*args, cwd=None, stdin=None, text=True, **more):
    """Run a command in a process of its own, with real streams."""
    return subprocess.run(
        [*SWAVG, *map(str, args)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=text,
        timeout=120,
        check=False,
        **more,
    )


def children(pid):
    """The processes that a process, which may end meanwhile, has started just now."""
    found = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                path = Path(f"/proc/{pid}/task/{thread}/children")
                found += map(int, path.read_text().split())
    return found


def shell(command, cwd, **more):
    """A shell's view, where redirections are the point; ``swavg`` is the command under test."""
    command = f'swavg() {{ {" ".join(SWAVG)} "$@"; }}; {command}'
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, capture_output=True, text=True, timeout=60, **more
    )


def line(text):
    """Run a line as a page shows it, which must end well: in this process unless the shell has
    something to do. The standard output."""
    bare = re.sub(r"'[^']*'", "", text.partition(" #")[0])
    if bare.startswith("swavg ") and not re.search(r"[|<>&;$*]", bare):
        found = swavg(*shlex.split(text, comments=True)[1:])
    else:
        missing = "command -v zstd >/dev/null || zstd() { cat; }"
        found = shell(f"{missing}; set -eo pipefail; {text}", ".")
    assert found.returncode == 0, f"{text}\n{found.stderr}"
    return found.stdout
