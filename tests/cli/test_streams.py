"""Standard streams that are closed, full, or cannot show a character."""

import json
import os
import subprocess

import pytest
import torch
from checkpoints import load, save, state
from command_line import SWAVG, shell

pytestmark = pytest.mark.slow


@pytest.fixture
def pair(tmp_path):
    """Two checkpoints, a and b, in a folder of their own."""
    save(tmp_path / "a.safetensors", state(1))
    save(tmp_path / "b.safetensors", state(2))
    return tmp_path


def expected(folder):
    one, two = load(folder / "a.safetensors"), load(folder / "b.safetensors")
    return ((one["body.bias"].double() + two["body.bias"].double()) / 2).float()


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", "<&-"])
def test_nobody_listening_to_messages_stops_nothing(pair, redirected):
    done = shell(f"swavg average a.safetensors b.safetensors -o c.safetensors {redirected}", pair)
    assert (done.returncode, done.stdout) == (0, "c.safetensors\n")
    assert torch.equal(load(pair / "c.safetensors")["body.bias"], expected(pair))


@pytest.mark.parametrize("more", ["", "--json"])
def test_a_full_standard_output_is_a_warning_once_the_output_has_its_name(pair, more):
    done = shell(f"swavg average a.safetensors b.safetensors -o c.st {more} >/dev/full", pair)
    assert done.returncode == 0
    assert "warning standard output: cannot be written: No space left" in done.stderr
    assert "c.st" in done.stderr
    assert torch.equal(load(pair / "c.st")["body.bias"], expected(pair))


@pytest.mark.parametrize(
    "command", ["average a.safetensors b.safetensors -n", "inspect a.safetensors", "average a"]
)
def test_a_full_standard_output_is_told(pair, command):
    done = shell(f"swavg {command} --json >/dev/full", pair)
    assert done.returncode in (4, 5)
    assert "standard output" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "inspect ä.safetensors --tree",
        "list ä.safetensors b.safetensors",
        "diff ä.safetensors b.safetensors",
        "average ä.safetensors b.safetensors -n",
    ],
)
def test_a_standard_output_without_unicode_replaces_what_it_cannot_show(pair, command):
    (pair / "a.safetensors").rename(pair / "ä.safetensors")
    done = shell(f"PYTHONIOENCODING=ascii swavg {command}", pair)
    assert done.returncode in (0, 3), done.stderr
    assert "\\xe4.safetensors" in done.stdout
    assert "u2500" not in done.stdout


def test_paths_and_json_are_data_in_any_encoding(pair):
    command = "PYTHONIOENCODING=ascii swavg average a.safetensors b.safetensors -o ü.safetensors"
    assert shell(command, pair).stdout == "ü.safetensors\n"
    found = json.loads(shell(f"{command} --force --json", pair).stdout)
    assert found["output"] == "ü.safetensors"


def test_names_that_are_no_text_are_printed_as_the_bytes_they_are(pair):
    name = b"\xff.safetensors"
    command = [*SWAVG, "average", "a.safetensors", "b.safetensors", "-o", name, "--force"]
    done = subprocess.run(command, cwd=pair, capture_output=True, check=True)
    assert done.stdout == name + b"\n"
    done = subprocess.run([*command, "--json"], cwd=pair, capture_output=True, check=True)
    assert json.loads(done.stdout)["output"] == os.fsdecode(name)


def test_a_closed_standard_output_takes_no_bytes(pair):
    done = shell("swavg average a.safetensors b.safetensors -o - >&-", pair)
    assert done.returncode == 2
    assert "Standard output is closed" in done.stderr
    done = shell("swavg average a.safetensors b.safetensors -o c.safetensors >&-", pair)
    assert done.returncode == 0
    assert torch.equal(load(pair / "c.safetensors")["body.bias"], expected(pair))


def test_a_closed_standard_input_names_no_paths(pair):
    done = shell("swavg average - <&-", pair)
    assert done.returncode == 2
    assert "standard input named no paths" in done.stderr


def test_a_shell_gets_its_completions(pair):
    done = shell("_SWAVG_COMPLETE=bash_source swavg", pair)
    assert done.returncode == 0
    assert "_swavg_completion" in done.stdout


def test_names_are_bytes_to_the_system(pair):
    done = shell(
        "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 swavg average a.safetensors b.safetensors"
        " -o ü.safetensors -q",
        pair,
    )
    assert done.returncode == 0, done.stderr
    assert (pair / "ü.safetensors").exists()


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    big = {"x": torch.zeros(4_000_000)}
    paths = [save(tmp_path / f"{i}.safetensors", big) for i in range(2)]
    command = f"{' '.join(SWAVG)} average {' '.join(paths)} -o - | head -c 10 > /dev/null"
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 141
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_gone_is_a_warning_once_the_output_has_its_name(pair):
    ours, theirs = os.pipe()
    os.close(ours)
    command = [*SWAVG, "average", "a.safetensors", "b.safetensors", "-o", "c.safetensors", "-q"]
    done = subprocess.run(command, cwd=pair, stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert done.returncode == 0
    assert "warning standard output: cannot be written: its reader went away" in done.stderr
    assert torch.equal(load(pair / "c.safetensors")["body.bias"], expected(pair))


@pytest.mark.parametrize("args", [["inspect", "a.safetensors"], ["average", "--help"]])
def test_a_reader_that_has_gone_has_a_code_of_its_own(pair, args):
    ours, theirs = os.pipe()
    os.close(ours)
    done = subprocess.run(
        [*SWAVG, *args], cwd=pair, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(theirs)
    assert done.returncode == 141
    assert done.stderr == ""
