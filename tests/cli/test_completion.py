"""What shells ask and get."""

import os
import subprocess

import click
import pytest
from command_line import SWAVG, done, swavg

from swavg.cli import cli


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell):
    text = done("completion", shell).stdout
    assert f"_SWAVG_COMPLETE={shell}_complete" in text
    assert swavg("completion", "tcsh").returncode == 2


def asked(words, cwd):
    """What bash is told for words, the last of which is not finished."""
    env = {**os.environ, "_SWAVG_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words),
           "COMP_CWORD": str(len(words) - 1)}  # fmt: skip
    # The program must be called by its name, as in a shell.
    code = "import sys; sys.argv = ['swavg']; from swavg.__main__ import run; run()"
    found = subprocess.run(
        [SWAVG[0], "-c", code], env=env, cwd=cwd, capture_output=True, text=True, check=True
    )
    return found.stdout.split()


def test_commands_options_and_paths_are_completed(tmp_path):
    assert "plain,average" in asked(["swavg", "av"], tmp_path)
    assert "plain,--max-shard-size" in asked(["swavg", "average", "--max"], tmp_path)
    assert asked(["swavg", "average", "a"], tmp_path) == ["file,a"]
    assert asked(["swavg", "ema", "--resume", "b"], tmp_path) == ["file,b"]
    assert asked(["swavg", "watch", "ru"], tmp_path) == ["file,ru"]


# What these name is no file, though it has a path in it.
NO_FILES = ("--key", "--model", "--data", "--loss", "--bn-data", "--recipe", "more")


@pytest.mark.parametrize("command", cli.list_commands(None))
def test_every_path_is_completed(command):
    """What is left are numbers, names and patterns."""
    for param in cli.get_command(None, command).params:
        words = "PATH", "FILE", "DIR", "OUT", "CKPT", "RUN", "CSV", "FIGURE", "SNAPSHOT", "SERIES"
        argument = param.param_type_name == "argument"
        if {*NO_FILES}.isdisjoint((*param.opts, param.name)) and (
            (argument and command != "completion")
            or any(word in (param.metavar or "") for word in words)
        ):
            (item,) = param.shell_complete(click.Context(cli), "x")
            assert (item.value, item.type) == ("x", "file"), param.opts
