"""Folders of one file of weights of any name, beside its configuration."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

import swavg
from swavg.errors import InputError
from swavg.formats import open_checkpoint
from swavg.formats.folder import is_checkpoint_folder
from swavg.series import discover


def folder(path: Path, weights: str, *others: str, value: float = 0.0) -> Path:
    """A folder of one file of a tensor, and of others of which nothing is read."""
    path.mkdir()
    tensors = {"visual.w": torch.full((3,), float(value))}
    if weights.endswith(".safetensors"):
        safetensors.torch.save_file(tensors, path / weights)
    else:
        torch.save({"epoch": 3, "state_dict": tensors, "args": {"lr": 0.5}}, path / weights)
    for name in others:
        (path / name).write_text(name)
    return path


CHECKPOINTS = [
    ("open_clip_pytorch_model.bin", "open_clip_config.json"),
    ("consolidated.00.pth", "params.json", "tokenizer.model"),
    ("model_weights.ckpt", "model_config.yaml"),
    ("checkpoint.pth.tar", "config.yml"),
    ("ip_adapter.bin", "config.json", "README.md"),
    ("control_v11p_sd15.pth", "control_v11p_sd15.yaml"),
    ("model.pt", "dict.txt", "optimizer.pt"),
    ("flux1-dev.safetensors", "config.json"),
    ("consolidated.safetensors", "params.json"),
    ("pytorch_lora_weights.safetensors", "adapter_config.json"),
]


@pytest.mark.parametrize("names", CHECKPOINTS)
def test_one_file_beside_configuration_is_written_as_such(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    folders = [folder(tmp_path / f"m{i}", *names, value=i) for i in range(2)]
    assert discover([folders[0]]).paths == (str(folders[0]),)
    swavg.average(folders, output=tmp_path / "o")
    assert set(os.listdir(tmp_path / "o")) == {*names} - {"optimizer.pt"}
    for name in names[1:]:
        if name != "optimizer.pt":
            assert (tmp_path / "o" / name).read_text() == name
    file = tmp_path / "o" / names[0]
    if file.suffix == ".safetensors":
        found = {"state_dict": safetensors.torch.load_file(file)}
    else:
        found = torch.load(file, weights_only=True)
        # With all else that the last one's file holds.
        assert (found["epoch"], found["args"]) == (3, {"lr": 0.5})
    assert found["state_dict"]["visual.w"].tolist() == [0.5] * 3
    assert open_checkpoint(tmp_path / "o").read("visual.w").tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("model.pt",), "without model.safetensors"),
        (("model.pt", "README.md", "train.log", "trainer_state.json"), "without model.safetensors"),
        (("training_args.bin", "config.json"), "without model.safetensors"),
        (("model.pt", "vocab.pt", "config.json"), "without model.safetensors"),
        (("pytorch_model-00001-of-00002.bin", "config.json"), "no index"),
    ],
)
def test_other_folders_are_none(tmp_path: Path, names: tuple[str, ...], problem: str) -> None:
    path = folder(tmp_path / "m", *names)
    assert not is_checkpoint_folder(str(path))
    with pytest.raises(InputError, match=problem):
        open_checkpoint(path)


def test_one_snapshot_beside_configuration_is_a_run(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", "step-10.pt", "config.yaml")
    assert discover([run]).paths == (str(run / "step-10.pt"),)


def test_a_folder_of_one_step_is_a_checkpoint_though_its_file_names_it_too(tmp_path: Path) -> None:
    paths = [
        folder(tmp_path / f"checkpoint-{n}", f"checkpoint-{n}.pt", "config.json") for n in (20, 3)
    ]
    assert discover(paths).paths == (str(paths[1]), str(paths[0]))
    assert discover([tmp_path]).paths == (str(paths[1]), str(paths[0]))


def test_a_file_beside_the_snapshots_of_a_run_is_no_checkpoint_of_its_own(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", "averaged.pt", "config.yaml")
    inner = folder(run / "checkpoint-5", "open_clip_pytorch_model.bin", "open_clip_config.json")
    assert str(inner) in discover([run]).paths


def test_a_folder_of_results_is_not_searched_as_a_checkpoint(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", "step-10.pt")
    folder(run / "samples", "features.pt", "info.json")
    assert discover([run]).paths == (str(run / "step-10.pt"),)


def test_shards_get_a_name_that_is_found(tmp_path: Path) -> None:
    folders = [folder(tmp_path / f"m{i}", "consolidated.00.pth", "params.json") for i in range(2)]
    for path in folders:
        torch.save({"a": torch.ones(3), "b": torch.ones(3)}, path / "consolidated.00.pth")
    policy = swavg.Policy(max_shard_size=12)
    swavg.average(folders, output=tmp_path / "o", policy=policy)
    assert sorted(os.listdir(tmp_path / "o")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "params.json",
    ]
    assert open_checkpoint(tmp_path / "o").read("b").tolist() == [1] * 3
