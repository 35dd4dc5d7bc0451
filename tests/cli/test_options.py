"""Options that commands share: said once, shown once under their heading."""

import json
import re

import pytest
from checkpoints import series
from command_line import done, swavg
from pages import ROOT

from swavg.cli import cli
from swavg.cli.options import Option, fewer_choices


@pytest.mark.parametrize(
    "command", ["average", "ema", "update", "window", "posthoc", "sweep", "list"]
)
def test_the_help_shows_each_option_once_under_a_heading(command):
    parameters = cli.get_command(None, command).params
    shown = swavg(command, "--help").stdout
    lines = shown[shown.index("\nOptions:\n") :].splitlines()
    for parameter in parameters:
        for option in (*parameter.opts, *parameter.secondary_opts):
            if option.startswith("--"):
                first = re.compile(rf"  (-\w, |--[\w-]+ / )?{option}( |$)")
                found = [line for line in lines if first.match(line)]
                assert len(found) == 1, option
    assert "\nRunning:\n" in shown
    assert shown.index("\nOptions:\n") < shown.index("\nRunning:\n")
    assert shown.count("Choosing checkpoints:") == (command not in ("update", "window"))


COMMANDS = cli.list_commands(None)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_usual_options_fit_on_a_screen(command):
    narrow = done(command, "-h", env={"COLUMNS": "80"}).stdout.splitlines()
    assert len(narrow) <= 24
    assert max(map(len, narrow)) <= 80
    assert narrow[2].strip()
    assert any(f"swavg {command} " in line for line in narrow[3:])
    assert narrow[-1].startswith(f"swavg {command} --help shows ")


@pytest.mark.parametrize("columns", [80, 100, 160])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_help_takes_a_hundred_columns_at_most(command, columns):
    lines = done(*command.split(), "--help", env={"COLUMNS": str(columns)}).stdout.splitlines()
    assert max(map(len, lines)) <= min(columns, 100)


def test_the_usual_options_are_told_in_a_sentence():
    shown = done("average", "-h", env={"COLUMNS": "80"}).stdout
    assert "  -o, --output OUT            Where to write. [default: averaged.SUFFIX]\n" in shown
    assert "  --dtype [keep|float32|...]  Floats in the output.  [default: keep]\n" in shown
    assert "  --exclude GLOB              Do not average these tensors.\n" in shown
    assert (
        shown.index("--by-metric") < shown.index("--last N") < shown.index("--strict / --lenient")
    )
    rare = "--lora", "--threads", "--at-most", "--temperature", "-h"
    assert not [option for option in rare if f"  {option} " in shown]
    told = done("bn", "-h").stdout
    assert "A function that returns the model.  [required]\n" in told


def test_an_example_is_shown_whole():
    shown = done("landscape", "-h", env={"COLUMNS": "80"}).stdout
    assert shown.count("\\\n") == 2
    assert "-o plane.svg\n" in shown


def test_version_and_module_agree():
    import swavg as package

    assert swavg("--version").stdout == f"swavg {package.__version__}\n"


@pytest.fixture
def pair(tmp_path):
    series(tmp_path, 2)
    return tmp_path


PAIR = ["average", "step-100.safetensors", "step-200.safetensors", "-n", "--json"]


def test_the_environment_gives_the_size_of_a_run_where_no_option_does(pair):
    environment = {"SWAVG_THREADS": "1", "SWAVG_MEMORY": "8MiB"}
    found = json.loads(done(*PAIR, cwd=pair, env=environment).stdout)
    assert (found["threads"], found["memory"] <= 8 << 20) == (1, True)
    found = json.loads(done(*PAIR, "--threads", "2", cwd=pair, env=environment).stdout)
    assert found["threads"] == 2
    wrong = swavg(*PAIR, cwd=pair, env={"SWAVG_THREADS": "many"})
    assert (wrong.returncode, "'--threads'" in wrong.stderr) == (2, True)


def test_the_page_has_the_variables_and_the_help_shows_them():
    page = (ROOT / "docs" / "json.md").read_text()
    rows = dict(re.findall(r"^\| `(SWAVG_\w+)` \| `--\w+` \| (.*) \|$", page, re.MULTILINE))
    averaging = {"average", "ema", "update", "window", "posthoc", "sweep", "convert"}
    for variable, text in rows.items():
        found = {
            name
            for name in cli.list_commands(None)
            for param in cli.get_command(None, name).params
            if param.envvar == variable
        }
        assert averaging <= found, variable
        assert found - averaging == {*re.findall(r"`(\w+)`", text)}, variable
        for name in found:
            assert f"env var: {variable}" in " ".join(done(name, "--help").stdout.split())
    assert set(rows) == {
        param.envvar
        for name in cli.list_commands(None)
        for param in cli.get_command(None, name).params
        if param.envvar
    }


@pytest.mark.parametrize(
    ("names", "key"),
    [
        ("--max-shard-size", "max-shard-size"),
        ("-n --dry-run", "dry-run"),
        ("--strict/--lenient", "strict"),
        ("--no-geometry", "geometry"),
    ],
)
def test_an_option_has_the_key_of_a_job_file(names, key):
    assert Option("field", names, "help").key == key


def test_choices_are_those_of_the_library(pair):
    wrong = swavg(*PAIR, "--integers", "most", cwd=pair)
    assert "'last', 'first', 'max', 'mean', 'error'" in " ".join(wrong.stderr.split())


@pytest.mark.parametrize(
    ("typed", "brief"),
    [
        ("--mode [min|max]", "--mode [min|max]"),
        ("--dtype [keep|float32|float64|float16|bfloat16]", "--dtype [keep|float32|...]"),
        ("--warmup [tensorflow|inverse-gamma|yolo]", "--warmup [tensorflow|...]"),
        ("--metric loss|error|MODULE:NAME", "--metric loss|error|..."),
        ("--an-option-of-a-long-name [a-long-word]", "--an-option-of-a-long-name [a-long-word]"),
        ("--an-option-of-a-long-name [a|b]", "--an-option-of-a-long-name [a|...]"),
    ],
)
def test_so_many_choices_are_shown_as_fit(typed, brief):
    assert fewer_choices(typed) == brief
