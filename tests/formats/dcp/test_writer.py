"""What is written, as torch loads it."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from command_line import done
from safetensors.torch import save_file
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

import swavg
from swavg.engine.verify import verify
from swavg.formats.dcp import data_files
from swavg.formats.dcp.metadata import read_metadata

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def state(seed):
    torch.manual_seed(seed)
    return {
        "model": {f"layers.{number}.weight": torch.randn(20, 30) for number in range(4)},
        "optim": {"state": {"layers.0.weight": torch.randn(20, 30)}, "lr": [0.1, 0.2], "n": seed},
    }


@pytest.fixture
def pair(tmp_path):
    for seed in (1, 2):
        dcp.save(state(seed), checkpoint_id=tmp_path / str(seed), no_dist=True)
    return [tmp_path / "1", tmp_path / "2"]


def loaded(folder):
    """The folder loaded into a state dict of other values."""
    into = state(3)
    dcp.load(into, checkpoint_id=folder, no_dist=True)
    return into


def mean():
    first, second = state(1)["model"], state(2)["model"]
    return {
        name: ((value.double() + second[name].double()) / 2).float()
        for name, value in first.items()
    }


def assert_is_mean(folder):
    found = loaded(folder)
    for name, value in mean().items():
        assert torch.equal(found["model"][name], value), name
    last = state(2)["optim"]
    moment = found["optim"]["state"]["layers.0.weight"]
    assert torch.equal(moment, last["state"]["layers.0.weight"])
    assert found["optim"]["lr"] == last["lr"]
    assert found["optim"]["n"] == last["n"]


def test_what_has_a_number_beside_the_data_is_no_checkpoint(pair, tmp_path):
    for number, folder in enumerate(pair):
        torch.save({"seen": torch.full((3,), float(number))}, folder / "loader_state_0.pth")
    done("average", *pair, "-o", tmp_path / "out")
    assert_is_mean(tmp_path / "out")
    assert torch.load(tmp_path / "out/loader_state_0.pth")["seen"].tolist() == [1, 1, 1]


def test_a_step_of_several_folders_has_those_of_the_model(tmp_path):
    for seed in (1, 2):
        held = {
            "model": state(seed)["model"],
            "optim": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]},
            "scheduler": {"last_epoch": seed},
        }
        for name, own in held.items():
            dcp.save(own, checkpoint_id=tmp_path / f"iter_{seed}" / name, no_dist=True)
    found = done("average", tmp_path / "iter_1", tmp_path / "iter_2", "-o", tmp_path / "out")
    assert "not copied from iter_2: optim, scheduler" in found.stderr
    into = state(3)["model"]
    dcp.load(into, checkpoint_id=tmp_path / "out/model", no_dist=True)
    assert all(torch.equal(into[name], value) for name, value in mean().items())


def test_names_of_their_own_are_told_where_the_last_input_has_no_others(pair, tmp_path):
    save_file(state(2)["model"], tmp_path / "last.safetensors")
    found = done("average", pair[0], tmp_path / "last.safetensors", "-o", tmp_path / "out")
    assert "under their own names" in found.stderr
    into = state(3)["model"]
    dcp.load(into, checkpoint_id=tmp_path / "out", no_dist=True)
    assert all(torch.equal(into[name], value) for name, value in mean().items())
    found = done("convert", tmp_path / "last.safetensors", tmp_path / "b", "--format", "dcp")
    assert "under their own names" not in found.stderr


def test_what_an_old_torch_wrote_an_old_torch_reads(pair, tmp_path):
    for folder in pair:
        content = pickle.loads((folder / ".metadata").read_bytes())
        for described in content.state_dict_metadata.values():
            if isinstance(described, TensorStorageMetadata):
                described.properties = TensorProperties(dtype=described.properties.dtype)
        (folder / ".metadata").write_bytes(pickle.dumps(content, 4))
    swavg.average(pair, output=tmp_path / "out")
    assert_is_mean(tmp_path / "out")
    content = pickle.loads((tmp_path / "out/.metadata").read_bytes()).state_dict_metadata
    kinds = {type(each.properties) for each in content.values() if hasattr(each, "properties")}
    assert kinds == {TensorProperties}
    # Torch 2.2 has no such name.
    assert b"_MEM_FORMAT_ENCODING" not in (tmp_path / "out/.metadata").read_bytes()


def test_factors_of_another_rank_stand_where_the_model_did(tmp_path):
    products = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        one, other = torch.randn(2, 6), torch.randn(5, 2)
        held = {"model": {"l.lora_A.weight": one, "l.lora_B.weight": other}, "n": seed}
        dcp.save(held, checkpoint_id=tmp_path / str(seed), no_dist=True)
        products.append(other @ one)
    policy = swavg.Policy(lora="exact")
    swavg.average([tmp_path / "1", tmp_path / "2"], output=tmp_path / "out", policy=policy)
    into = {"l.lora_A.weight": torch.zeros(4, 6), "l.lora_B.weight": torch.zeros(5, 4)}
    dcp.load({"model": into}, checkpoint_id=tmp_path / "out", no_dist=True)
    found = into["l.lora_B.weight"] @ into["l.lora_A.weight"]
    assert torch.allclose(found, sum(products) / 2, atol=1e-5)


def test_an_average_of_what_the_recipe_alone_says_is_proven(tmp_path):
    for seed in (1, 2):
        models = {"queue": state(seed)["model"], "memory": state(seed + 2)["model"]}
        dcp.save(models, checkpoint_id=tmp_path / str(seed), no_dist=True)
    out = tmp_path / "out"
    swavg.average([tmp_path / "1", tmp_path / "2"], output=out, policy=swavg.Policy(key=""))
    proven = verify(out, everything=True)
    assert proven.proven == proven.total > 0


def test_training_resumes_from_an_average(pair, tmp_path):
    report = swavg.average(pair, output=tmp_path / "out")
    assert_is_mean(tmp_path / "out")
    assert "the model is under 'model'" in report.notes
    assert "left as in 2: optim" in report.notes


def test_large_checkpoints_are_several_files(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(data_files, "MOST", 8000)
    swavg.average(pair, output=tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.distcp"))
    assert len(files) > 2
    assert all(file.stat().st_size <= 8000 for file in files)
    assert_is_mean(tmp_path / "out")


@pytest.fixture
def small_chunks(monkeypatch):
    """Four chunks of five rows for each weight, some of them at the end of a file."""
    monkeypatch.setattr(data_files, "CHUNK", 700)
    monkeypatch.setattr(data_files, "MOST", 8000)


def test_rows_of_large_tensors_are_chunks_which_a_rank_reads_alone(pair, small_chunks, tmp_path):
    swavg.average(pair, output=tmp_path / "out")
    assert_is_mean(tmp_path / "out")
    saved = read_metadata(str(tmp_path / "out"))
    digits = set()
    for name in mean():
        chunks = saved.tensors[f"model.{name}"].chunks
        assert [(chunk.start, chunk.shape) for chunk in chunks] == [
            ((first, 0), (5, 30)) for first in (0, 5, 10, 15)
        ]
        for chunk in chunks:
            file = (tmp_path / "out" / saved.files[chunk.place.file]).read_bytes()
            start, length = chunk.place.offset, chunk.place.length
            with zipfile.ZipFile(io.BytesIO(file[start : start + length])) as archive:
                assert archive.testzip() is None
                digits.add(archive.read("archive/.data/serialization_id"))
    assert len(digits) == 16
    assert len({chunk.place.file for each in saved.tensors.values() for chunk in each.chunks}) > 2
    opened = swavg.open_checkpoint(tmp_path / "out")
    for name, value in mean().items():
        np.testing.assert_array_equal(opened.read(name), value.numpy())


def test_chunks_are_the_same_by_any_workers_and_in_every_row(pair, small_chunks, tmp_path):
    swavg.average(pair, output=tmp_path / "one", resources=swavg.Resources(threads=1))
    small = swavg.Resources(threads=3, memory=1 << 20)
    for name, expected in (("many", "one"), ("sweep", "one")):
        out = tmp_path / name
        if name == "many":
            swavg.average(pair, output=out, resources=small)
        else:
            rows = [swavg.Row((1.0,), (1,)), swavg.Row((0.5, 0.5), (0, 1))]
            plan = swavg.prepare(pair, rows, [str(tmp_path / "last"), str(out)])
            swavg.execute(plan, small)
        for file in (tmp_path / expected).glob("*.distcp"):
            assert file.read_bytes() == (out / file.name).read_bytes(), file
    for name, value in state(2)["model"].items():
        assert torch.equal(loaded(tmp_path / "last")["model"][name], value)


def test_a_byte_of_a_chunk_that_is_another_is_found(pair, small_chunks, tmp_path):
    swavg.average(pair, output=tmp_path / "out")
    verify(tmp_path / "out")
    chunk = read_metadata(str(tmp_path / "out")).tensors["model.layers.2.weight"].chunks[2]
    path = tmp_path / "out" / f"__0_{chunk.place.file}.distcp"
    data = bytearray(path.read_bytes())
    at = data.index(mean()["layers.2.weight"][10].numpy().tobytes(), chunk.place.offset)
    data[at + 4] ^= 1
    path.write_bytes(data)
    with pytest.raises(swavg.MismatchError, match=r"'layers.2.weight' .*: byte 1,204 of it"):
        verify(tmp_path / "out")


def test_an_average_is_averaged_again(pair, tmp_path):
    swavg.average(pair, output=tmp_path / "out")
    swavg.average([tmp_path / "out", tmp_path / "out"], output=tmp_path / "again")
    assert_is_mean(tmp_path / "again")


def test_tensors_that_are_dropped_are_in_nothing_that_is_written(pair, tmp_path):
    policy = swavg.Policy(exclude=("layers.3.*",), drop_excluded=True)
    swavg.average(pair, output=tmp_path / "out", policy=policy)
    saved = read_metadata(str(tmp_path / "out"))
    assert "model.layers.3.weight" not in {*saved.tensors, *saved.paths}
    assert "model.layers.2.weight" in saved.tensors


def test_other_names_are_written_flat_and_alone(pair, tmp_path):
    policy = swavg.Policy(rename=("layers=blocks",))
    report = swavg.average(pair, output=tmp_path / "out", policy=policy)
    saved = read_metadata(str(tmp_path / "out"))
    assert set(saved.tensors) == {f"blocks.{number}.weight" for number in range(4)}
    assert not saved.objects
    assert any("'optim'" in note and "left out" in note for note in report.notes)


def test_a_torch_file_becomes_a_distributed_checkpoint(tmp_path):
    torch.save(state(1)["model"], tmp_path / "a.pt")
    swavg.average([tmp_path / "a.pt"], output=tmp_path / "out", policy=swavg.Policy(format="dcp"))
    into = {name: torch.zeros(20, 30) for name in state(1)["model"]}
    dcp.load(into, checkpoint_id=tmp_path / "out", no_dist=True)
    for name, value in state(1)["model"].items():
        np.testing.assert_array_equal(into[name].numpy(), value.numpy())


def test_another_model_that_stays_is_warned_of(tmp_path):
    for seed in (1, 2):
        both = {"model": state(seed)["model"], "ema": state(seed + 2)["model"]}
        dcp.save(both, checkpoint_id=tmp_path / str(seed), no_dist=True)
    report = swavg.average([tmp_path / "1", tmp_path / "2"], output=tmp_path / "out")
    warning = "'ema' was not averaged, but left as in 2 (--key ema averages it alone)"
    assert warning in report.warnings
    into = {"ema": state(5)["model"]}
    dcp.load(into, checkpoint_id=tmp_path / "out", no_dist=True)
    for name, value in state(4)["model"].items():
        assert torch.equal(into["ema"][name], value)


def test_float32_weights_of_an_optimizer_are_warned_of(tmp_path):
    saved = {"w": torch.ones(2), "optimizer.state.fp32_param.w": torch.ones(2)}
    dcp.save(saved, checkpoint_id=tmp_path / "1", no_dist=True)
    report = swavg.average([tmp_path / "1"] * 2, output=tmp_path / "out")
    assert any("the optimizer's float32 weights are those of 1" in w for w in report.warnings)


def test_tensors_in_an_object_are_warned_of(tmp_path):
    for seed in (1, 2):
        one = torch.full((2,), float(seed))
        model = {"w": one, "pair": (one, one), "deep": {"sizes": np.ones(3) * seed}, "n": seed}
        model |= {"note": "numbers", "fp8._extra_state": {"scale": (one,)}, "listed": [one]}
        dcp.save({"model": model}, checkpoint_id=tmp_path / str(seed), no_dist=True)
    report = swavg.average([tmp_path / "1", tmp_path / "2"], output=tmp_path / "out")
    warnings = [warning for warning in report.warnings if "saved as one object" in warning]
    assert [warning.split("'")[1] for warning in warnings] == ["pair", "deep.sizes"]
    assert all(warning.endswith("left as in 2") for warning in warnings)
