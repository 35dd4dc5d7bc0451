"""Where an output goes and of which format it is: by its suffix, else as the first input."""

import os
from dataclasses import replace

import make
import numpy as np
import pytest
import torch
from checkpoints import save

from swavg.cli.values import FormatName
from swavg.errors import RequestError
from swavg.formats import open_checkpoint
from swavg.formats.table import FORMATS
from swavg.planning.policy import Policy
from swavg.planning.targets import Target, choose_target, default_path, suffix_of


@pytest.fixture
def inputs(tmp_path):
    """An open checkpoint of each format."""
    folder = tmp_path / "in"
    save(folder / "a.safetensors", {"x": torch.ones(2)})
    torch.save({"x": torch.ones(2)}, folder / "a.pt")
    torch.save({"x": torch.ones(2)}, folder / "a.pth", _use_new_zipfile_serialization=False)
    make.sharded(folder / "m", {"model.safetensors": {"x": np.ones(2, np.float32)}})
    names = {"safetensors": "a.safetensors", "torch": "a.pt", "torch-legacy": "a.pth",
             "folder": "m"}  # fmt: skip
    return {kind: open_checkpoint(folder / name) for kind, name in names.items()}


@pytest.mark.parametrize("first", ["safetensors", "torch", "torch-legacy", "folder"])
@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("out.safetensors", "safetensors"),
        ("out.SAFETENSORS", "safetensors"),
        ("out.pt", "torch"),
        ("out.pth", "torch"),
        ("out.bin", "torch"),
        ("out.ckpt", "torch"),
        ("out.pth.tar", "torch"),
        ("out.npz", "npz"),
    ],
)
def test_a_suffix_names_the_format(inputs, tmp_path, first, name, format):
    path = str(tmp_path / name)
    assert choose_target(path, inputs[first], Policy()) == Target(path, format)


@pytest.mark.parametrize(
    ("first", "format"),
    [
        ("safetensors", "safetensors"),
        ("torch", "torch"),
        ("torch-legacy", "torch"),
        ("folder", "folder"),
    ],
)
@pytest.mark.parametrize("name", ["out", "ckpt-1.5", "out.xyz"])
def test_without_one_it_is_that_of_the_first_input(inputs, tmp_path, first, format, name):
    path = str(tmp_path / name)
    assert choose_target(path, inputs[first], Policy(), force=True) == Target(path, format, True)


def test_standard_output_is_one_safetensors_file(inputs):
    assert choose_target(None, inputs["torch"], Policy()) == Target(None, "safetensors")
    with pytest.raises(RequestError, match="Standard output takes one file"):
        choose_target(None, inputs["torch"], Policy(max_shard_size=1000))


def test_a_file_goes_into_a_folder_that_exists(inputs, tmp_path):
    (tmp_path / "out").mkdir()
    found = choose_target(str(tmp_path / "out"), inputs["torch"], Policy())
    assert found == Target(str(tmp_path / "out" / "averaged.pt"), "torch")


def test_shards_and_a_slash_at_the_end_ask_for_a_folder(inputs, tmp_path):
    path = str(tmp_path / "out")
    assert choose_target(path, inputs["torch"], Policy(max_shard_size=1000)) == Target(
        path, "folder"
    )
    assert choose_target(f"{path}/", inputs["safetensors"], Policy()) == Target(path, "folder")
    with pytest.raises(RequestError, match="A folder of shards cannot be named"):
        choose_target(f"{path}.pt", inputs["torch"], Policy(max_shard_size=1000))


def test_a_pipe_takes_one_file(inputs, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.pt")
    path = str(tmp_path / "pipe")
    assert choose_target(path, inputs["folder"], Policy()) == Target(path, "safetensors")
    assert choose_target(path, inputs["torch"], Policy()) == Target(path, "torch")
    assert choose_target(f"{path}.pt", inputs["safetensors"], Policy()) == Target(
        f"{path}.pt", "torch"
    )


def test_the_default_name_is_like_the_first_input(inputs):
    assert default_path("averaged", inputs["safetensors"], Policy()) == "averaged.safetensors"
    assert default_path("averaged", inputs["torch-legacy"], Policy()) == "averaged.pth"
    assert default_path("averaged", inputs["folder"], Policy()) == "averaged"
    assert default_path("averaged", inputs["torch"], Policy(max_shard_size=1000)) == "averaged"


@pytest.mark.parametrize(
    ("path", "suffix"),
    [("a/b.pt", ".pt"), ("a.pth.tar", ".pth.tar"), ("ckpt-1.5", ""), ("a", ""), ("a.b/c/", "")],
)
def test_a_number_is_no_suffix(path, suffix):
    assert suffix_of(path) == suffix


def test_a_format_that_is_asked_for(inputs, tmp_path):
    policy = Policy(format="safetensors")
    assert choose_target("o", inputs["torch"], policy) == Target("o", "safetensors")
    assert choose_target(str(tmp_path), inputs["torch"], policy) == Target(
        str(tmp_path / "averaged.safetensors"), "safetensors"
    )
    assert choose_target(None, inputs["safetensors"], Policy(format="torch")).format == "torch"
    assert default_path("averaged", inputs["folder"], policy) == "averaged.safetensors"
    with pytest.raises(RequestError, match=r"the suffix of torch files, and format=safetensors"):
        choose_target("o.pt", inputs["torch"], policy)
    with pytest.raises(RequestError, match="leave format=folder out"):
        choose_target(None, inputs["torch"], Policy(format="folder"))
    for path in ("o", None):
        with pytest.raises(RequestError, match="format=gguf is not written"):
            choose_target(path, inputs["torch"], Policy(format="gguf"))
    with pytest.raises(RequestError, match="format=gguf is not written"):
        default_path("averaged", inputs["torch"], Policy(format="gguf"))


@pytest.mark.parametrize(
    ("name", "first", "hint"),
    [
        ("o.distcp", "torch", "format=dcp"),
        ("o.index", "folder", "format=tensorflow"),
        ("o.npy", "safetensors", "o.npz"),
        ("o.msgpack", "safetensors", "unflatten_dict(load_file('o.safetensors'), sep='.')"),
        ("o.pkl", "safetensors", "o.safetensors, .npz or .pt"),
        ("o.onnx", "torch", "o.safetensors or .pt"),
    ],
)
def test_the_suffix_of_a_file_that_would_be_something_else_is_refused(inputs, name, first, hint):
    with pytest.raises(RequestError, match=f"does not write {os.path.splitext(name)[1]}") as caught:
        choose_target(name, inputs[first], Policy())
    assert hint in (caught.value.hint or "")


def test_a_pickle_is_what_torch_writes(inputs):
    assert choose_target("o.pkl", inputs["torch"], Policy()) == Target("o.pkl", "torch")


def test_a_suffix_that_two_libraries_use_is_not_taken_for_the_wrong_one(inputs, tmp_path):
    bundle = replace(inputs["torch"], format="tensorflow")
    with pytest.raises(RequestError, match="would be a torch file, and the inputs are of tensor"):
        choose_target("o.ckpt", bundle, Policy())
    assert choose_target("o.ckpt", bundle, Policy(format="torch")).format == "torch"
    assert choose_target("o.pt", bundle, Policy()).format == "torch"
    (tmp_path / "o.ckpt").mkdir()
    assert choose_target(str(tmp_path / "o.ckpt"), bundle, Policy()).format == "tensorflow"


def test_the_help_shows_the_formats_that_are_written():
    assert {*FormatName.names} == {n for n, row in FORMATS.items() if row.lay_out is not None}
