"""Averages that are made again and compared."""

import json
import os
import shutil

import composites
import make
import pytest
from command_line import done, swavg

CALLS = {
    "mean": ["average", "run"],
    "weighted": ["average", "run", "--weights", "5", "1", "1", "1", "1", "--normalize"],
    "ema": ["ema", "run", "--half-life", "30steps", "--dtype", "float32"],
    "excluded": ["average", "run", "--exclude", "body.*", "--last", "2"],
    "converted": ["convert", "one.safetensors"],
}


@pytest.fixture
def made(run):
    done("average", "run", "--last", 1, "-o", "one.safetensors", cwd=run)
    return run


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (args, name)
        for what, args in CALLS.items()
        for name in ("out.safetensors", "out.pt", "out")
        if (what, name) != ("converted", "out")
    ],
)
def test_an_average_is_proven_from_its_inputs(made, args, name):
    more = ["--max-shard-size", "1kB"] if name == "out" else []
    place = [name] if args[0] == "convert" else ["-o", name]
    done(*args, *place, *more, cwd=made)
    for every in ([], ["--all"]):
        found = json.loads(done("verify", name, *every, "--json", cwd=made).stdout)
        assert found["proven"] == found["total"] > 0
        assert found["notes"] == []


def test_an_update_is_proven_from_the_average_before(run):
    done("average", "run", "--last", 2, "-o", "a.safetensors", "--dtype", "float32", cwd=run)
    new = next((run / "run").glob("step_10-*"))
    done("update", "a.safetensors", new, "-o", "b.safetensors", cwd=run)
    assert "all of" in done("verify", "b.safetensors", cwd=run).stdout


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt"])
def test_every_byte_of_a_tensor_that_is_another_is_told(run, name):
    done("average", "run", "-o", name, cwd=run)
    data = bytearray((run / name).read_bytes())
    from swavg.formats import open_checkpoint

    tensor = open_checkpoint(str(run / name)).tensors["body.bias"]
    data[tensor.boxes[0].offset + 5] ^= 1
    (run / name).write_bytes(data)
    found = swavg("verify", name, cwd=run)
    assert found.returncode == 3
    assert "'body.bias' is not what its recipe says: byte 5 of it" in found.stderr


def test_a_header_that_is_another_is_told(run):
    done("average", "run", "-o", "out.safetensors", cwd=run)
    data = (run / "out.safetensors").read_bytes()
    (run / "out.safetensors").write_bytes(data.replace(b"body.bias", b"body.bjas"))
    assert swavg("verify", "out.safetensors", cwd=run).returncode == 3


def test_inputs_that_are_gone_moved_or_another(run):
    done("average", "run", "--last", 2, "-o", "out.safetensors", cwd=run)
    path = next((run / "run").glob("step_40-*"))
    other = next((run / "run").glob("step_20-*"))
    (run / "kept").mkdir()
    moved = shutil.move(path, run / "kept" / path.name)
    assert "all of" in done("verify", "out.safetensors", cwd=run).stdout
    shutil.copyfile(other, moved)
    found = swavg("verify", "out.safetensors", cwd=run)
    assert found.returncode == 4
    assert "is not what the average was made of" in found.stderr
    assert "Give the inputs, or their URLs, behind the output" in found.stderr
    os.unlink(moved)
    found = swavg("verify", "out.safetensors", cwd=run)
    assert found.returncode == 4
    assert "was not found near it" in found.stderr
    found = swavg("verify", "out.safetensors", other, cwd=run)
    assert found.returncode == 2
    assert "has 2 inputs, and 1 were given" in found.stderr


@pytest.mark.parametrize("name", ["out.safetensors", "out.pt", "out.npz"])
def test_inputs_may_have_other_names_and_the_header_is_compared_all_the_same(run, name):
    done("average", "run", "--last", 2, "-o", name, cwd=run)
    paths = [next((run / "run").glob(f"{step}-*")) for step in ("step_40", "step_100")]
    for number, path in enumerate(paths):
        shutil.move(path, run / f"a-name-that-is-longer-than-it-was-{number}.safetensors")
    inputs = sorted(path.name for path in run.glob("a-name*"))
    found = done("verify", name, *inputs, cwd=run)
    assert "all of" in found.stdout
    assert "inputs of other names" in found.stderr
    data = (run / name).read_bytes()
    (run / name).write_bytes(data.replace(b"body.bias", b"body.bjas"))
    assert swavg("verify", name, *inputs, cwd=run).returncode == 3


def test_parts_are_proven_from_those_of_the_inputs(tmp_path):
    for number in (1, 2):
        composites.write(tmp_path / f"step-{number}", composites.llama(number))
    done("average", "step-1", "step-2", "-o", "out", cwd=tmp_path)
    for inputs in ([], ["step-1", "step-2"]):
        assert "all of" in done("verify", "out", *inputs, cwd=tmp_path).stdout
    (tmp_path / "step-2").rename(tmp_path / "of-another-name")
    found = swavg("verify", "out", "step-1", "of-another-name", cwd=tmp_path)
    assert (found.returncode, "Name them as they were: step-1" in found.stderr) == (4, True)


@pytest.mark.parametrize("damage", [{"options": "x"}, {"weights": ["x", 1]}, {"weights": [None]}])
def test_a_recipe_of_somebody_else(run, damage):
    recipe = {"inputs": ["a", "b"], "weights": [0.5, 0.5], **damage}
    entries = {"__metadata__": {"swavg": json.dumps(recipe)}, "x": make.entry("F32", (), (0, 4))}
    (run / "out.safetensors").write_bytes(make.raw(entries, bytes(4)))
    inputs = sorted((run / "run").iterdir())[:2]
    found = swavg("verify", "out.safetensors", *inputs, cwd=run)
    assert (found.returncode, "none of swavg's" in found.stderr) == (4, True), found.stderr


def test_what_has_no_recipe(run):
    found = swavg("verify", next((run / "run").glob("step_40-*")), cwd=run)
    assert found.returncode == 4
    assert "holds no recipe" in found.stderr


def test_what_was_converted_into_shards_is_not_laid_out_as_its_recipe_says(made):
    done("convert", "one.safetensors", "out", "--max-shard-size", "1kB", cwd=made)
    found = swavg("verify", "out", cwd=made)
    assert found.returncode == 4
    assert "was it converted?" in found.stderr
