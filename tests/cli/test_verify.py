"""Averages that are made again and compared."""

import json
import os
import shutil

import composites
import make
import numpy as np
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


def test_a_number_of_checkpoints_that_is_another_is_told(run):
    done("average", "run", "-o", "out.safetensors", cwd=run)
    data = (run / "out.safetensors").read_bytes()
    (run / "out.safetensors").write_bytes(data.replace(rb"\"n\": 5", rb"\"n\": 9"))
    assert "would be written now is another" in done("verify", "out.safetensors", cwd=run).stderr


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


def test_inputs_of_a_run_that_lies_deep_are_found(run):
    deep = run / "logs" / "version_0" / "checkpoints"
    shutil.copytree(run / "run", deep)
    shutil.rmtree(run / "run")
    done("average", "logs", "--last", 2, "-o", "out.safetensors", cwd=run)
    assert "from 2 inputs" in done("verify", "out.safetensors", cwd=run).stdout
    # Elsewhere, only where it is told; folders in names count.
    shutil.copytree(deep, run / "logs" / "version_1" / "checkpoints")
    name = next(deep.iterdir()).name
    both = [f"logs/version_{number}/checkpoints/{name}" for number in (0, 1)]
    done("average", *both, "-o", "twins.safetensors", cwd=run)
    (run / "out").mkdir()
    for output in ("out.safetensors", "twins.safetensors"):
        shutil.move(run / output, run / "out" / output)
        assert "from 2" in done("verify", output, "../logs", cwd=run / "out").stdout
    (run / "elsewhere").mkdir()
    shutil.move(run / "logs", run / "elsewhere" / "logs")
    assert swavg("verify", "out.safetensors", cwd=run / "out").returncode == 4
    assert "from 2" in done("verify", "out.safetensors", "../elsewhere", cwd=run / "out").stdout
    (run / "elsewhere" / "empty").mkdir()
    found = swavg("verify", "out.safetensors", "../elsewhere/empty", cwd=run / "out")
    assert found.returncode == 4
    assert "was not found in ../elsewhere/empty" in found.stderr
    assert "or the folder that they lie in" in found.stderr


def test_of_several_of_a_name_it_is_the_one_that_was_averaged(run):
    first, last = (
        "run/step_40-val_loss=0.025.safetensors",
        "run/step_100-val_loss=0.010.safetensors",
    )
    done("average", first, last, "-o", "out.safetensors", cwd=run)
    name = os.path.basename(first)
    (run / "kept").mkdir()
    shutil.move(run / first, run / "kept" / name)
    # One of another size, found first, and one of the same size.
    (run / name).write_bytes(make.raw({"x": make.entry("F32", (), (0, 4))}, bytes(4)))
    shutil.copyfile(run / last, run / first)
    assert f'"kept/{name}"' in done("verify", "out.safetensors", "--json", cwd=run).stdout
    shutil.rmtree(run / "kept")
    for problem in ("it has 72 bytes, and had", "its fingerprint is"):
        found = swavg("verify", "out.safetensors", cwd=run)
        assert (found.returncode, problem in found.stderr) == (4, True), found.stderr
        (run / name).unlink(missing_ok=True)


def test_an_input_that_was_replaced_by_its_average_is_gone(run):
    first, last = sorted((run / "run").iterdir())[:2]
    done("average", first, last, "-o", "out.safetensors", cwd=run)
    os.replace(run / "out.safetensors", first)
    found = swavg("verify", first, cwd=run)
    assert (found.returncode, "was not found near it" in found.stderr) == (4, True), found.stderr


def test_a_header_that_is_longer_is_told(run):
    done("average", "run", "-o", "out.safetensors", cwd=run)
    data = (run / "out.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    longer = (size + 8).to_bytes(8, "little") + data[8 : 8 + size] + b" " * 8 + data[8 + size :]
    (run / "out.safetensors").write_bytes(longer)
    found = swavg("verify", "out.safetensors", cwd=run)
    told = f"it has {len(longer):,} bytes, and {len(data):,} were to be there"
    assert (found.returncode, told in found.stderr) == (3, True), found.stderr


@pytest.mark.parametrize("name", ["out.pt", "out.npz"])
def test_a_checksum_that_is_another_is_told(run, name):
    done("average", "run", "-o", name, cwd=run)
    data = bytearray((run / name).read_bytes())
    # The CRC-32 of the first member, in the central directory.
    data[data.rindex(b"PK\1\2") + 16] ^= 1
    (run / name).write_bytes(data)
    found = swavg("verify", name, cwd=run)
    assert found.returncode == 3
    assert "what is no tensor is not what its recipe says" in found.stderr


@pytest.fixture
def folder(run):
    for number in (1, 2):
        place = run / f"checkpoint-{number}"
        place.mkdir()
        path = next((run / "run").glob(f"step_{number}0-*"))
        shutil.copyfile(path, place / "model.safetensors")
        for name, text in (("config.json", "{}"), ("README.md", "a model")):
            (place / name).write_text(text)
    done(
        "average", "checkpoint-1", "checkpoint-2", "-o", "out", "--max-shard-size", "200B", cwd=run
    )
    return run / "out"


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("config.json", ("{}", "[]"), "is not that of the last input, checkpoint-2/config.json"),
        ("config.json", None, "is missing, and goes along with the weights"),
        (
            "model.safetensors.index.json",
            ("total_size", "total-size"),
            "is not what its recipe says",
        ),
    ],
)
def test_files_beside_the_weights_are_compared(folder, name, text, problem):
    assert "all of" in done("verify", "out", cwd=folder.parent).stdout
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text((folder / name).read_text().replace(*text))
    found = swavg("verify", "out", cwd=folder.parent)
    assert (found.returncode, problem in found.stderr) == (3, True), found.stderr


def test_a_page_for_people_may_be_written_into(folder):
    (folder / "README.md").write_text("a better model")
    assert "all of" in done("verify", "out", cwd=folder.parent).stdout


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


@pytest.mark.parametrize(
    "damage",
    [
        {"options": "x"},
        {"options": {"include": 5}},
        {"options": {"strip_prefix": [1]}},
        {"options": {"strict": "no"}},
        {"weights": ["x", 1]},
        {"weights": [None]},
        {"weights": [1, 10**350]},
        {"weights": [1e308, 1e308]},
        {"method": {"mean": 1}},
    ],
)
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


def test_with_digests_a_byte_that_no_fingerprint_has_is_told(tmp_path):
    # What is excluded plays no part in the average, and lies between the places of a fingerprint.
    names = ("a.safetensors", "b.safetensors")
    for seed, name in enumerate(names):
        make.arrays(tmp_path / name, seed, large=np.zeros(1 << 20, np.float32))
    args = ["average", *names, "--exclude", "large", "--drop-excluded"]
    shown = done(*args, "--digest", "full", "-o", "full.safetensors", "-n", cwd=tmp_path).stdout
    assert "full.safetensors" in shown
    done(*args, "--digest", "full", "-o", "full.safetensors", cwd=tmp_path)
    done(*args, "--digest", "full", "-o", "again.safetensors", "--threads", 1, cwd=tmp_path)
    assert (tmp_path / "full.safetensors").read_bytes() == (
        tmp_path / "again.safetensors"
    ).read_bytes()
    done(*args, "-o", "sampled.safetensors", cwd=tmp_path)
    done("verify", "full.safetensors", cwd=tmp_path)
    with open(tmp_path / names[0], "r+b") as file:
        file.seek(1_000_000)
        file.write(b"\1")
    done("verify", "sampled.safetensors", cwd=tmp_path)
    found = swavg("verify", "full.safetensors", cwd=tmp_path)
    assert (found.returncode, "a.safetensors: is not what" in found.stderr) == (4, True)
    assert "the digest of all its bytes is another" in found.stderr
    assert (
        "| digest of all bytes |"
        in done("inspect", "full.safetensors", "--card", cwd=tmp_path).stdout
    )


@pytest.mark.parametrize("way", ["https://127.0.0.1:9/", "s3://bucket/", "ABSOLUTE", "../"])
def test_a_name_in_a_recipe_leads_nowhere_else(run, way, monkeypatch):
    asked = []
    monkeypatch.setattr("swavg.engine.nearby.exists", lambda path: asked.append(path))
    name = f"{run}/run/x.safetensors" if way == "ABSOLUTE" else f"{way}x.safetensors"
    recipe = {"method": "mean", "inputs": [name], "weights": [1.0]}
    entries = {"__metadata__": {"swavg": json.dumps(recipe)}, "x": make.entry("F32", (), (0, 4))}
    (run / "out.safetensors").write_bytes(make.raw(entries, bytes(4)))
    found = swavg("verify", "out.safetensors", cwd=run)
    assert (found.returncode, "was not found near it" in found.stderr) == (4, True), found.stderr
    done("inspect", "out.safetensors", cwd=run)
    assert asked == []
