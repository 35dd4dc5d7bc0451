"""Pages that say what an average is."""

import json
import os
import shlex
import subprocess

import composites
import pytest
from checkpoints import load, save, state
from command_line import done, swavg
from run_of_five import STEPS, assert_bias, bias

FOLDER = ["--max-shard-size", "1MB", "--card"]


def commands(page):
    """The two that a page ends with."""
    made, proven = page.split("```")[1].splitlines()[1:]
    return [shlex.split(line)[1:] for line in (made, proven)]


@pytest.mark.parametrize(
    "call",
    [
        ["average", "--last", "2"],
        ["average", "--weights", "5", "1", "1", "1", "1", "--normalize", "--dtype", "float32"],
        ["ema", "--half-life", "30steps", "--exclude", "body.weight"],
    ],
)
def test_what_a_page_says_makes_the_same_tensors_and_proves_them(run, call):
    command, *options = call
    done(command, "run", *options, "-o", "out", *FOLDER, cwd=run)
    page = (run / "out" / "README.md").read_text()
    assert done("inspect", "out", "--card", cwd=run).stdout == page
    made, proven = commands(page)
    assert "all of" in done(*proven, cwd=run).stdout
    done(*made, cwd=run / "run")
    before, after = (load(run / each / "out" / "model.safetensors") for each in (".", "run"))
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_a_page_tells_of_inputs_and_of_what_is_behind_them(run):
    done("average", "run", "--last", 2, "-o", "a.safetensors", cwd=run)
    new = next((run / "run").glob("step_10-*"))
    done("update", "a.safetensors", new, "-o", "out", *FOLDER, cwd=run)
    page = (run / "out" / "README.md").read_text()
    assert page.startswith("---\ntags:\n- merge\n- weight-averaging\n---\n\n# out\n")
    assert "An average of 2 checkpoints: `running mean`, by swavg" in page
    assert f"| 0.333333 | `{new.name}` | 10 | {new.stat().st_size:,} |" in page
    assert "`, 0.5 `step_100-val_loss=0.010.safetensors`" in page
    assert str(run) not in page
    assert "swavg average a.safetensors step_10-" in page


def test_a_page_takes_the_place_of_that_of_an_input(run):
    for step in STEPS[:2]:
        folder = run / f"checkpoint-{step}"
        save(folder / "model.safetensors", state(step))
        (folder / "README.md").write_text("of the base model")
    done("average", "checkpoint-10", "checkpoint-20", "-o", "out", "--card", cwd=run)
    assert "# out" in (run / "out" / "README.md").read_text()
    done("verify", "out", cwd=run)
    assert_bias(run / "out" / "model.safetensors", bias(STEPS[:2]))


def test_of_parts_the_whole_inputs_are_named(tmp_path):
    for step in (1, 2):
        composites.write(tmp_path / f"step-{step}", composites.llama(step))
    done("average", "step-1", "step-2", "-o", "out", "--card", cwd=tmp_path)
    page = (tmp_path / "out" / "README.md").read_text()
    assert commands(page) == [
        ["average", "step-1", "step-2", "--output=out"],
        ["verify", "out"],
    ]
    assert done("inspect", "out", "--card", cwd=tmp_path).stdout == page


@pytest.mark.parametrize("output", ["out.safetensors", "-"])
def test_beside_a_file_it_is_printed_instead(run, output):
    found = swavg("average", "run", "-o", output, "--card", cwd=run)
    assert found.returncode == 2
    name = "OUT" if output == "-" else output
    assert f"swavg inspect {name} --card > {name}.md" in found.stderr
    assert not (run / "out.safetensors").exists()


def test_a_name_is_no_markup_and_no_variable(run, monkeypatch):
    monkeypatch.setenv("SECRET", "12345")
    names = ["a|b`c.safetensors", "${SECRET}.safetensors"]
    for name in names:
        save(run / name, state(1))
    done("average", *names, "-o", "out.safetensors", cwd=run)
    page = done("inspect", "out.safetensors", "--card", cwd=run).stdout
    assert "| `a\\|b'c.safetensors` |" in page
    assert "12345" not in page
    assert commands(page)[0][1:3] == names


def test_what_a_recipe_says_breaks_no_line_of_a_page_and_no_terminal(tmp_path):
    evil = "x\x1b[2J\n```\n# evil <b>|\udcff\ud800'"
    recipe = {
        "method": evil,
        "inputs": [f"a{evil}", "b"],
        "weights": [0.5, 0.5],
        "fingerprints": [evil, evil],
        "version": evil,
        evil: evil,
        "options": {"dtype": evil},
        "lineage": [{"fingerprint": evil, "method": evil, "inputs": [evil], "weights": [evil]}],
    }
    save(tmp_path / "out.safetensors", state(1), {"swavg": json.dumps(recipe)})
    page = done("inspect", "out.safetensors", "--card", cwd=tmp_path).stdout
    assert "\x1b" not in page
    assert all("`" in line for line in page.splitlines() if "evil" in line)
    assert page.count("\n# ") == 1
    assert page.count("\n```") == 2
    recipe["options"] = {"\x1b]0;evil\x07": 1}
    save(tmp_path / "out.safetensors", state(1), {"swavg": json.dumps(recipe)})
    found = swavg("inspect", "out.safetensors", "--card", cwd=tmp_path)
    assert (found.returncode, "\x1b" in found.stderr) == (2, False)


def test_the_command_of_a_page_has_names_of_several_lines(tmp_path):
    names = ["a\n'b\\.safetensors", "\xfc\udcff\t.safetensors"]
    for name in names:
        save(tmp_path / name, state(1))
    done("average", *names, "-o", "out.safetensors", cwd=tmp_path)
    page = done("inspect", "out.safetensors", "--card", cwd=tmp_path).stdout
    made = page.split("```")[1].splitlines()[1].replace("swavg average", "printf '%s\\0'")
    told = subprocess.run(["bash", "-c", made], capture_output=True, check=True).stdout
    assert told.split(b"\0")[:2] == [os.fsencode(name) for name in names]


def test_what_is_no_average_has_no_page(run):
    path = next((run / "run").iterdir())
    found = swavg("inspect", path, "--card", cwd=run)
    assert (found.returncode, "holds no recipe" in found.stderr) == (4, True)
    recipe = '{"inputs": ["a"], "weights": [1' + 399 * "0" + "]}"
    save(run / "out.safetensors", state(1), {"swavg": recipe})
    found = swavg("inspect", "out.safetensors", "--card", cwd=run)
    assert (found.returncode, "holds no recipe" in found.stderr) == (4, True)
