"""Folders as Hugging Face writes them: found, checked, averaged into folders, and replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import make
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
from make import sharded

import swavg
from swavg.errors import InputError, OutputError, OutputExistsError, RequestError
from swavg.formats import open_checkpoint
from swavg.formats.checkpoint import Checkpoint

INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Arrays = dict[str, np.ndarray[Any, Any]]


def tensors(seed: int) -> dict[str, Arrays]:
    """Two shards of small tensors."""
    random = np.random.default_rng(seed)

    def array(*shape: int) -> np.ndarray[Any, Any]:
        return random.standard_normal(shape).astype(np.float32)

    return {ONE: {"b.w": array(5, 3), "a.w": array(2)}, TWO: {"c.w": array(4, 4), "d": array()}}


def flat(shards: Mapping[str, Arrays]) -> Arrays:
    return {name: array for shard in shards.values() for name, array in shard.items()}


def opened(path: str | Path) -> Checkpoint:
    checkpoint = open_checkpoint(path)
    assert checkpoint.format == "folder"
    return checkpoint


def shards_of(checkpoint: Checkpoint) -> Mapping[str, tuple[str, ...]]:
    """The file names of the shards, with the names of their tensors."""
    return checkpoint.extras.shards


def assert_holds(path: str | Path, expected: Arrays) -> None:
    checkpoint = open_checkpoint(path)
    assert set(checkpoint) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(checkpoint.read(name), array, strict=True)


def loaded(folder: str | Path) -> Arrays:
    """The tensors as the safetensors library and the index agree that they lie."""
    index = json.loads((Path(folder) / INDEX).read_text())
    found: Arrays = {}
    for file in sorted(set(index["weight_map"].values())):
        shard = safetensors.numpy.load_file(Path(folder) / file)
        assert set(shard) == {name for name, home in index["weight_map"].items() if home == file}
        found |= shard
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in found.values())
    return found


def refused(path: str | Path, problem: str, at: str = "") -> InputError:
    """Opening the folder fails with this problem of its file ``at``."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(path)
    assert problem in caught.value.problem
    assert caught.value.path == (os.path.join(path, at) if at else str(path))
    return caught.value


def index_of(folder: Path, content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / INDEX).write_bytes(text)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "diffusion_pytorch_model.safetensors",
        "adapter_model.safetensors",
        "open_clip_model.safetensors",
        "model.fp16.safetensors",
        "consolidated.safetensors",
    ],
)
def test_a_single_safetensors_file_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(safetensors.numpy.save({"a": np.arange(3)}))
    (tmp_path / "config.json").write_text("{}")
    checkpoint = opened(tmp_path)
    assert checkpoint.read("a").tolist() == [0, 1, 2]
    assert list(shards_of(checkpoint)) == [name]
    assert list(checkpoint.extras.side_files) == ["config.json"]


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "adapter_model.bin", "diffusion_pytorch_model.bin"]
)
def test_a_single_bin_file_is_found(tmp_path: Path, name: str) -> None:
    torch.save({"a": torch.arange(3)}, tmp_path / name)
    assert opened(tmp_path).read("a").tolist() == [0, 1, 2]


def test_safetensors_goes_before_bin(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").write_bytes(safetensors.numpy.save({"a": np.ones(1)}))
    checkpoint = opened(tmp_path)
    assert checkpoint.read("a").tolist() == [1.0]
    assert checkpoint.extras.left_out == ("pytorch_model.bin",)


def test_shards_open_as_one_checkpoint(tmp_path: Path) -> None:
    shards = tensors(1)
    checkpoint = opened(sharded(tmp_path / "m", shards))
    assert_holds(tmp_path / "m", flat(shards))
    assert {name: set(found) for name, found in shards_of(checkpoint).items()} == {
        name: set(found) for name, found in shards.items()
    }
    assert [os.path.basename(source.name) for source in checkpoint.sources] == [ONE, TWO]
    np.testing.assert_array_equal(checkpoint["c.w"][1:3], shards[TWO]["c.w"][1:3])


def test_bin_shards_open_as_one_checkpoint(tmp_path: Path) -> None:
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for index, name in enumerate(names):
        torch.save({f"t{index}": torch.full((2,), float(index))}, tmp_path / name)
    weight_map = {"t0": names[0], "t1": names[1]}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = opened(tmp_path)
    assert {name: checkpoint.read(name).tolist() for name in checkpoint} == {
        "t0": [0.0, 0.0],
        "t1": [1.0, 1.0],
    }


def test_diffusers_shards_open_as_one_checkpoint(tmp_path: Path) -> None:
    name = "diffusion_pytorch_model-00001-of-00001.safetensors"
    (tmp_path / name).write_bytes(safetensors.numpy.save({"a": np.ones(2)}))
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
    assert opened(tmp_path).read("a").tolist() == [1.0, 1.0]


def test_links_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    shards = tensors(1)
    sharded(tmp_path / "real", shards, config__json="{}")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, name in enumerate(sorted(os.listdir(tmp_path / "real"))):
        (tmp_path / "real" / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    assert_holds(snapshot, flat(shards))
    assert list(opened(snapshot).extras.side_files) == ["config.json"]


def test_side_files_and_what_is_left_out_are_told_apart(tmp_path: Path) -> None:
    folder = Path(sharded(tmp_path / "m", tensors(1)))
    side = ["config.json", "tokenizer.json", "merges.txt", "LICENSE", ".gitattributes", "x.model"]
    other = ["optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth", "tf_model.h5"]
    for name in [*side, *other, ".model.0123.swavg-partial"]:
        (folder / name).write_text(name)
    (folder / "global_step5").mkdir()
    os.mkfifo(folder / "pipe")
    checkpoint = opened(folder)
    assert set(checkpoint.extras.side_files) == set(side)
    partial = ".model.0123.swavg-partial"
    assert set(checkpoint.extras.left_out) == {*other, "global_step5", "pipe", partial}


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = Path(sharded(tmp_path / "m", tensors(1)))
    (folder / TWO).unlink()
    refused(folder, f"missing, though '{INDEX}' lists it", TWO)


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    folder = Path(sharded(tmp_path / "m", tensors(1)))
    (folder / TWO).write_bytes((folder / TWO).read_bytes()[:-1])
    refused(folder, "truncated: its tensors need", TWO)


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "a\\b",
        "x\0.safetensors",
        "..",
        ".",
        "",
    ],
)
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path, shard: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(safetensors.numpy.save({"a": np.ones(1)}))
    folder = index_of(tmp_path / "m", {"weight_map": {"a": shard}})
    refused(folder, f"lists the shard {shard!r}, which is no plain file name", INDEX)


@pytest.mark.parametrize("weight_map", [[], ["a"], {}, "a", 1, None, {"a": 1}, {"a": None}])
def test_an_index_whose_weight_map_is_no_map_is_refused(tmp_path: Path, weight_map: Any) -> None:
    folder = index_of(tmp_path / "m", {"weight_map": weight_map})
    refused(folder, "its 'weight_map' does not map tensor names to file names", INDEX)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000])
def test_an_index_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    refused(index_of(tmp_path / "m", text), "is no index", INDEX)


def test_an_index_that_names_two_homes_for_a_tensor_is_refused(tmp_path: Path) -> None:
    text = b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'
    refused(index_of(tmp_path / "m", text), "the key 'a' is there twice", INDEX)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"weight_map":[' + b"[]," * 600_000 + b"1]}", "lists more than 1,000,000 tensors"),
        (b" " * ((64 << 20) + 1), "has 67,108,865 bytes, more than an index could need"),
    ],
)
def test_an_index_that_would_fill_the_memory_is_refused(
    tmp_path: Path, text: bytes, problem: str
) -> None:
    refused(index_of(tmp_path / "m", text), problem, INDEX)


def test_a_listed_tensor_that_no_shard_has_is_named(tmp_path: Path) -> None:
    folder = Path(sharded(tmp_path / "m", tensors(1)))
    content = json.loads((folder / INDEX).read_text())
    content["weight_map"]["lost"] = TWO
    refused(index_of(folder, content), f"has no 'lost', though '{INDEX}' says so", TWO)


def test_a_tensor_in_the_other_shard_than_listed_is_named(tmp_path: Path) -> None:
    folder = Path(sharded(tmp_path / "m", tensors(1)))
    content = json.loads((folder / INDEX).read_text())
    content["weight_map"]["c.w"] = ONE
    refused(index_of(folder, content), "has no 'c.w'", ONE)


def test_an_unlisted_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    shards = tensors(1)
    shards[ONE]["twin"] = shards[TWO]["twin"] = np.ones(2, np.float32)
    folder = Path(sharded(tmp_path / "m", shards))
    content = json.loads((folder / INDEX).read_text())
    del content["weight_map"]["twin"]
    refused(index_of(folder, content), "'twin' is also in another shard", TWO)


def test_of_a_tensor_in_two_shards_the_listed_one_is_read(tmp_path: Path) -> None:
    shards = tensors(1)
    shards[ONE]["twin"] = np.zeros(2, np.float32)
    shards[TWO]["twin"] = np.ones(2, np.float32)
    folder = sharded(tmp_path / "m", shards)
    assert json.loads(Path(folder, INDEX).read_text())["weight_map"]["twin"] == TWO
    assert open_checkpoint(folder).read("twin").tolist() == [1.0, 1.0]


def test_a_shard_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    folder = index_of(tmp_path / "m", {"weight_map": {"a": "model"}})
    sharded(folder / "model", tensors(1))
    refused(folder, "is a folder, where a file with weights is expected", "model")


def test_a_folder_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(".")
    refused(tmp_path, "is a folder, where a file with weights is expected", "model.safetensors")


def test_a_shard_that_is_a_fifo_is_refused(tmp_path: Path) -> None:
    folder = index_of(tmp_path / "m", {"weight_map": {"a": "a.safetensors"}})
    os.mkfifo(folder / "a.safetensors")
    refused(folder, "not a regular file", "a.safetensors")


def test_shards_without_an_index_are_named(tmp_path: Path) -> None:
    folder = Path(sharded(tmp_path / "m", tensors(1)))
    (folder / INDEX).unlink()
    refused(folder, "has 2 shards but no index (*.index.json)")


def averaged(tmp_path: Path, **options: Any) -> tuple[Path, Arrays]:
    """Two sharded folders and their average in ``out``; what the average should hold."""
    one = sharded(tmp_path / "one", tensors(1), config__json='{"v": 1}', only_one__txt="1")
    two = sharded(tmp_path / "two", tensors(2), config__json='{"v":  2}\r\n', vocab__txt="x\0y")
    swavg.average([one, two], output=tmp_path / "out", **options)
    first, second = flat(tensors(1)), flat(tensors(2))
    mean = {
        name: ((first[name].astype(np.float64) + second[name]) / 2).astype(np.float32)
        for name in first
    }
    return tmp_path / "out", mean


def test_two_sharded_folders_average_into_the_shards_of_the_last(tmp_path: Path) -> None:
    out, mean = averaged(tmp_path)
    found = loaded(out)
    assert set(found) == set(mean)
    for name, array in mean.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    assert set(safetensors.numpy.load_file(out / ONE)) == set(tensors(1)[ONE])
    assert_holds(out, mean)


def test_every_shard_keeps_its_metadata_and_records_the_recipe(tmp_path: Path) -> None:
    out, _ = averaged(tmp_path)
    for name in (ONE, TWO):
        with safetensors.safe_open(out / name, framework="numpy") as file:
            metadata = file.metadata()
        assert metadata["format"] == "pt"
        assert json.loads(metadata["swavg"])["inputs"] == ["one", "two"]


def test_side_files_come_from_the_last_input_byte_for_byte(tmp_path: Path) -> None:
    out, _ = averaged(tmp_path)
    for name in ("config.json", "vocab.txt"):
        assert (out / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert sorted(os.listdir(out)) == sorted([ONE, TWO, INDEX, "config.json", "vocab.txt"])


def test_the_metadata_of_the_index_is_kept(tmp_path: Path) -> None:
    one, two = (Path(sharded(tmp_path / str(seed), tensors(seed))) for seed in (1, 2))
    content = json.loads((two / INDEX).read_text())
    content["metadata"] |= {"total_size": 1, "note": "ä"}
    index_of(two, content)
    swavg.average([one, two], output=tmp_path / "out")
    assert json.loads((tmp_path / "out" / INDEX).read_text())["metadata"] == {
        "total_size": sum(array.nbytes for array in flat(tensors(1)).values()),
        "note": "ä",
    }


def test_the_same_folders_give_the_same_bytes(tmp_path: Path) -> None:
    out, _ = averaged(tmp_path)
    swavg.average([tmp_path / "one", tmp_path / "two"], output=tmp_path / "again")
    for name in os.listdir(out):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("limit", [1, 60, 64, 70, 120, 10**9])
def test_shards_hold_at_most_the_size_asked_for(tmp_path: Path, limit: int) -> None:
    out, mean = averaged(tmp_path, policy=swavg.Policy(max_shard_size=limit))
    assert_holds(out, mean)
    shards = sorted(name for name in os.listdir(out) if name.endswith(".safetensors"))
    if limit > 10**6:
        assert shards == ["model.safetensors"]
        assert not (out / INDEX).exists()
        return
    count = len(shards)
    assert shards == [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert set(loaded(out)) == set(mean)
    for shard in shards:
        sizes = [array.nbytes for array in safetensors.numpy.load_file(out / shard).values()]
        assert sum(sizes) <= limit or len(sizes) == 1


def test_single_files_average_into_a_folder_of_shards(tmp_path: Path) -> None:
    paths = [make.arrays(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    policy = swavg.Policy(max_shard_size=100)
    swavg.average(paths, output=tmp_path / "out", policy=policy)
    assert set(loaded(tmp_path / "out")) == {"a.w", "b.w"}
    assert len(os.listdir(tmp_path / "out")) == 3


def test_a_folder_says_what_it_leaves_out_as_a_file_does(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"model": {"w": torch.ones(3)}, "optimizer": {}, "step": 7}, path)
    for output, more in (("out/", {}), ("shards", {"max_shard_size": 8})):
        policy = swavg.Policy(**more)
        found = swavg.average([path, path], output=f"{tmp_path}/{output}", policy=policy)
        told = [note for note in found.notes if "left out" in note]
        assert told == [
            "a folder of weights holds tensors only: 'optimizer', 'step' of a.pt left out"
        ]


def test_bin_shards_average_into_bin_shards_that_torch_reads(tmp_path: Path) -> None:
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for value, folder in enumerate(["one", "two"]):
        (tmp_path / folder).mkdir()
        for index, name in enumerate(names):
            state = {f"t{index}": torch.full((3,), float(10 * index + value))}
            torch.save(state, tmp_path / folder / name)
        weight_map = {"t0": names[0], "t1": names[1]}
        index_file = tmp_path / folder / "pytorch_model.bin.index.json"
        index_file.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    swavg.average([tmp_path / "one", tmp_path / "two"], output=tmp_path / "out")
    found: dict[str, torch.Tensor] = {}
    for name in names:
        found |= torch.load(tmp_path / "out" / name, weights_only=True)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "t0": [0.5] * 3,
        "t1": [10.5] * 3,
    }
    index_text = (tmp_path / "out" / "pytorch_model.bin.index.json").read_text()
    assert json.loads(index_text)["weight_map"] == weight_map


def test_a_folder_that_exists_is_not_replaced_unasked(tmp_path: Path) -> None:
    out, mean = averaged(tmp_path)
    with pytest.raises(OutputError, match="exists already"):
        swavg.average([tmp_path / "one", tmp_path / "one"], output=out)
    assert_holds(out, mean)


def test_a_folder_is_replaced_as_a_whole_when_forced(tmp_path: Path) -> None:
    out, _ = averaged(tmp_path, policy=swavg.Policy(max_shard_size=1))
    assert len(os.listdir(out)) > 5
    swavg.average([tmp_path / "two", tmp_path / "two"], output=out, force=True)
    assert_holds(out, flat(tensors(2)))
    assert sorted(os.listdir(out)) == sorted([ONE, TWO, INDEX, "config.json", "vocab.txt"])
    assert make.debris(tmp_path) == []


@pytest.mark.parametrize("foreign", ["notes.md", "optimizer.pt", "run/log.txt"])
def test_a_folder_with_foreign_files_is_not_replaced_even_when_forced(
    tmp_path: Path, foreign: str
) -> None:
    out, mean = averaged(tmp_path)
    (out / foreign).parent.mkdir(exist_ok=True)
    (out / foreign).write_text("mine")
    with pytest.raises(OutputExistsError, match="exists already, and holds") as caught:
        swavg.average([tmp_path / "one", tmp_path / "two"], output=out)
    assert "force" not in str(caught.value)
    with pytest.raises(OutputError, match="would be replaced, but holds") as caught:
        swavg.average([tmp_path / "one", tmp_path / "two"], output=out, force=True)
    assert foreign.split("/")[0] in str(caught.value)
    assert (out / foreign).read_text() == "mine"
    (out / foreign).rename(tmp_path / "moved")
    assert_holds(out, mean)


def test_a_failure_while_a_folder_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    out, mean = averaged(tmp_path)

    def fail(progress: Any) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        swavg.average([tmp_path / "two"] * 2, output=out, force=True, on_progress=fail)
    assert_holds(out, mean)
    assert make.debris(tmp_path) == []


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_is_never_put_in_the_place_of_a_file(tmp_path: Path, force: bool) -> None:
    (tmp_path / "out").write_text("mine")
    one = sharded(tmp_path / "one", tensors(1))
    with pytest.raises(OutputError):
        swavg.average([one, one], output=tmp_path / "out", force=force)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_never_takes_the_place_of_an_input(tmp_path: Path, force: bool) -> None:
    one, two = (sharded(tmp_path / str(seed), tensors(seed)) for seed in (1, 2))
    with pytest.raises(OutputError, match=r"holds the input|exists already"):
        swavg.average([one, two], output=two, force=force)
    assert_holds(two, flat(tensors(2)))


def test_a_folder_cannot_have_the_name_of_a_file(tmp_path: Path) -> None:
    one = make.arrays(tmp_path / "one.safetensors")
    policy = swavg.Policy(max_shard_size=10)
    with pytest.raises(RequestError, match="A folder of shards cannot be named"):
        swavg.average([one, one], output=tmp_path / "out.safetensors", policy=policy)


def cached(folder: Path, name: str, *commits: str, main: str | None) -> Path:
    """A repository in the cache of a hub: a snapshot per commit, its files links into blobs."""
    repository = folder / f"models--org--{name}"
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    for number, commit in enumerate(commits):
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        tensor = np.full(3, number, np.float32)
        (repository / "blobs" / f"w{number}").write_bytes(safetensors.numpy.save({"w": tensor}))
        (repository / "blobs" / f"c{number}").write_text(f'{{"commit": "{commit}"}}')
        (snapshot / "model.safetensors").symlink_to(f"../../blobs/w{number}")
        (snapshot / "config.json").symlink_to(f"../../blobs/c{number}")
    if main is not None:
        (repository / "refs" / "main").write_text(main)
    return repository


def test_a_repository_of_a_hub_cache_is_the_snapshot_that_main_names(tmp_path: Path) -> None:
    inputs = [cached(tmp_path, name, "aaa", "bbb", main="bbb") for name in "xy"]
    assert_holds(inputs[0], {"w": np.ones(3, np.float32)})
    swavg.average([*inputs, inputs[0] / "snapshots" / "aaa"], output=tmp_path / "out")
    assert_holds(tmp_path / "out", {"w": np.full(3, 2 / 3, np.float32)})
    # The files themselves, not links to where they are not.
    assert not (tmp_path / "out" / "config.json").is_symlink()
    assert (tmp_path / "out" / "config.json").read_text() == '{"commit": "aaa"}'


@pytest.mark.parametrize("main", [None, "gone", "gone\n"])
def test_of_a_repository_without_the_main_snapshot_the_only_one_is_taken(
    tmp_path: Path, main: str | None
) -> None:
    assert_holds(cached(tmp_path, "x", "aaa", main=main), {"w": np.zeros(3, np.float32)})
    several = cached(tmp_path, "y", "aaa", "bbb", main=main)
    error = refused(several, "2 snapshots, and refs/main names none")
    assert error.hint == f"Give one of them: {several / 'snapshots' / 'aaa'}"
    assert open_checkpoint(several / "snapshots" / "aaa").tensors


@pytest.mark.parametrize("main", ["../../models--org--z/snapshots/aaa", "..", "", "/", "."])
def test_a_reference_leads_nowhere_else(tmp_path: Path, main: str) -> None:
    cached(tmp_path, "z", "aaa", main="aaa")
    refused(cached(tmp_path, "y", "aaa", "bbb", main=main), "refs/main names none")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("saved_model.pb", "is of a TensorFlow SavedModel"),
        ("model.ckpt-7.index", "is of a TensorFlow checkpoint"),
        ("manifest.ocdbt", "is a part of an Orbax checkpoint"),
        ("model.onnx", "is an ONNX model"),
        ("model-q4.gguf", "is a GGUF file"),
    ],
)
def test_what_a_folder_holds_instead_is_named(tmp_path: Path, name: str, problem: str) -> None:
    for file in ("config.json", "README.md", name):
        (tmp_path / file).write_bytes(b"x")
    refused(tmp_path, problem, name)
    for file in ("step-1.pt", "step-2.pt"):
        (tmp_path / file).write_bytes(b"x")
    hint = refused(tmp_path, "is a folder without model.safetensors").hint
    assert hint == "Give the checkpoint files themselves, such as step-1.pt."


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "model.keras", "m.npz"])
def test_files_of_other_formats_in_a_folder_are_to_be_given_themselves(
    tmp_path: Path, name: str
) -> None:
    for file in ("config.json", name):
        (tmp_path / file).write_bytes(b"x")
    hint = refused(tmp_path, "is a folder without model.safetensors").hint
    assert hint == f"Give the checkpoint files themselves, such as {name}."


def test_shards_of_a_variant_alone_are_opened(tmp_path: Path) -> None:
    names = [f"diffusion_pytorch_model-0000{n}-of-00002.fp16.safetensors" for n in (1, 2)]
    index = "diffusion_pytorch_model.safetensors.index.fp16.json"
    for i in range(2):
        folder = tmp_path / f"m{i}"
        folder.mkdir()
        for name, own in zip(names, "ab", strict=True):
            arrays = {own: np.full(2, i, np.float16)}
            safetensors.numpy.save_file(arrays, folder / name)
        weight_map = dict(zip("ab", names, strict=True))
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    inputs = [tmp_path / "m0", tmp_path / "m1"]
    expected = {name: np.full(2, 0.5, np.float16) for name in "ab"}
    swavg.average(inputs, output=tmp_path / "o")
    assert_holds(tmp_path / "o", expected)
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == sorted([*names, index])
    swavg.average(inputs, output=tmp_path / "p", policy=swavg.Policy(max_shard_size=5))
    assert_holds(tmp_path / "p", expected)
    assert (tmp_path / "p" / "diffusion_pytorch_model.safetensors.index.json").exists()
    # Beside the usual weights they are another form of these, as is their index.
    for folder in inputs:
        safetensors.numpy.save_file(
            {"a": np.ones(2, np.float32)}, folder / "diffusion_pytorch_model.safetensors"
        )
    report = swavg.average(inputs, output=tmp_path / "q")
    assert [*os.listdir(tmp_path / "q")] == ["diffusion_pytorch_model.safetensors"]
    assert not [text for text in report.warnings if "neither averaged" in text]
