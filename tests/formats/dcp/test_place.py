"""Where a distributed checkpoint lies."""

from __future__ import annotations

import pytest

import swavg
from swavg.errors import InputError
from swavg.formats.dcp.place import Place, find_place


def folder(path, *names):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"x")
    return path


def test_a_folder_is_known_by_its_data(tmp_path):
    run = folder(tmp_path / "run", ".metadata", "__0_0.distcp")
    assert find_place(str(run)) == Place(str(run))
    assert find_place(str(folder(tmp_path / "unfinished", "__0_0.distcp"))) is None
    assert find_place(str(folder(tmp_path / "json", ".metadata", "config.json"))) is None
    assert find_place(str(tmp_path / "nowhere")) is None
    assert find_place(str(run / ".metadata")) is None


@pytest.mark.parametrize("inner", ["model_and_optim", "pytorch_model_fsdp_0"])
def test_a_folder_above_it_is_known_too_unless_it_has_weights(tmp_path, inner):
    run = folder(tmp_path / "run", f"{inner}/.metadata", f"{inner}/__0_0.distcp", "scheduler.bin")
    assert find_place(str(run)) == Place(str(run), inner)
    folder(run, "model.safetensors")
    assert find_place(str(run)) is None


def test_of_several_models_one_has_to_be_given(tmp_path):
    run = tmp_path / "run"
    for number in range(2):
        folder(run / f"pytorch_model_fsdp_{number}", ".metadata", "__0_0.distcp")
    with pytest.raises(InputError, match=r"several models.*give .*pytorch_model_fsdp_0"):
        swavg.open_checkpoint(run)


def test_a_data_file_alone_is_told_so(tmp_path):
    folder(tmp_path, "__0_0.distcp")
    with pytest.raises(InputError, match=r"a part of a distributed checkpoint.*Give its folder"):
        swavg.open_checkpoint(tmp_path / "__0_0.distcp")


def test_metadata_of_each_rank_alone_is_told(tmp_path):
    folder(tmp_path, "__0.metadata", "__0_0.distcp")
    with pytest.raises(InputError, match=r"metadata of each rank alone.*use_collectives=True"):
        swavg.open_checkpoint(tmp_path)
