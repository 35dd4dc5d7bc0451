"""Snapshots: what is in the file, what the command line reads of it, and what is refused."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from make import debris
from ranks import ranks
from torch import nn

from swavg.errors import OutputError, RequestError
from swavg.formats import open_checkpoint
from swavg.series.inside import read_inside
from swavg.training import save_snapshot

torch.set_num_threads(1)


class Tied(nn.Module):
    """A tied head, a buffer that is not saved, one that is, and batch statistics."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor(2.5))
        self.register_buffer("cache", torch.zeros(4), persistent=False)


@pytest.fixture
def net():
    torch.manual_seed(1)
    return Tied()


def metadata(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return file.metadata()


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


def command(*arguments):
    """What a command prints to stdout."""
    return subprocess.run(
        [sys.executable, "-m", "swavg", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def test_a_snapshot_loads_strictly_with_tied_names_and_persistent_buffers(net, tmp_path):
    path = save_snapshot(tmp_path / "step-1.safetensors", net, step=1)
    found = safetensors.torch.load_file(path)
    same(found, net.state_dict())
    assert "cache" not in found
    other = Tied()
    other.load_state_dict(found, strict=True)
    assert torch.equal(other.head.weight, net.embedding.weight)
    assert debris(tmp_path) == []


def test_a_training_state_is_not_changed_by_saving(net, tmp_path):
    net.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    save_snapshot(tmp_path / "a.safetensors", net)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    same(net.state_dict(), before)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
        torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
        torch.uint16, torch.bool, torch.complex64,
    ],
    ids=str,
)  # fmt: skip
def test_every_dtype_keeps_its_bytes(dtype, tmp_path):
    whole = torch.arange(24).reshape(4, 6).remainder(7).to(dtype)
    tensors = {
        "plain": whole,
        "scalar": whole[1, 2].clone(),
        "empty": whole[:0],
        "transposed": whole.t(),
        "strided": whole[1:, ::2],
        "row": whole[2],
    }
    path = save_snapshot(tmp_path / "a.safetensors", tensors)
    same(
        safetensors.torch.load_file(path),
        {name: tensor.contiguous() for name, tensor in tensors.items()},
    )


def test_the_file_equals_the_reference_librarys(tmp_path):
    tensors = {"b.weight": torch.randn(3, 4), "a": torch.randn(7).half(), "n": torch.tensor(3)}
    ours = save_snapshot(tmp_path / "ours.safetensors", tensors)
    safetensors.torch.save_file(tensors, tmp_path / "theirs.safetensors", {"format": "pt"})
    assert ours.read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_conjugated_and_negated_views_are_saved_as_their_values(tmp_path):
    values = torch.randn(5, dtype=torch.complex64)
    path = save_snapshot(tmp_path / "a.safetensors", {"c": values.conj(), "n": values.conj().imag})
    found = safetensors.torch.load_file(path)
    assert torch.equal(found["c"], values.conj().resolve_conj())
    assert torch.equal(found["n"], -values.imag)


@pytest.mark.slow
def test_wrappers_leave_no_trace_in_the_names(net, tmp_path):
    class Own(nn.Module):
        """Not a wrapper of torch's, but with a child that is called as theirs."""

        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    compiled = torch.compile(nn.Sequential(torch.compile(nn.Linear(2, 3)), net))
    path = save_snapshot(tmp_path / "a.safetensors", compiled)
    names = set(safetensors.torch.load_file(path))
    expected = {f"1.{name}" for name in net.state_dict()} | {"0.weight", "0.bias"}
    assert names == expected
    parallel = save_snapshot(tmp_path / "b.safetensors", nn.DataParallel(net))
    assert set(safetensors.torch.load_file(parallel)) == set(net.state_dict())
    own = save_snapshot(tmp_path / "c.safetensors", Own())
    assert set(safetensors.torch.load_file(own)) == {"module.weight", "module.bias"}
    mapping = save_snapshot(tmp_path / "d.safetensors", compiled.state_dict())
    assert set(safetensors.torch.load_file(mapping)) == expected


def test_step_epoch_and_metrics_are_read_by_a_series(tmp_path):
    path = save_snapshot(
        tmp_path / "model.safetensors",
        {"w": torch.ones(2)},
        step=1000,
        epoch=np.int64(3),
        metrics={
            "val_loss": torch.tensor([0.25]),
            "val/acc": np.float32(0.5),
            "bad": math.nan,
            "worse": -math.inf,
        },
        metadata={"run": "17"},
    )
    inside = read_inside(str(path))
    assert dict(inside.counts) == {"step": 1000, "epoch": 3}
    assert inside.metrics["val_loss"] == 0.25
    assert inside.metrics["val/acc"] == 0.5
    assert math.isnan(inside.metrics["bad"])
    assert inside.metrics["worse"] == -math.inf
    assert not inside.averaged
    assert metadata(path)["run"] == "17"
    json.loads(metadata(path)["metrics"], parse_constant=pytest.fail)


@pytest.mark.parametrize("padding", range(0, 256, 8))
def test_the_step_is_read_whatever_the_length_of_the_header(padding, tmp_path):
    # One of these lengths starts with the byte that a pickle starts with.
    path = save_snapshot(
        tmp_path / "a.safetensors", {"w": torch.ones(1)}, step=3, metadata={"run": "x" * padding}
    )
    assert read_inside(str(path)).counts == {"step": 3}


def test_list_and_best_read_snapshots_whose_names_say_nothing(tmp_path):
    losses = {"alpha": (100, 0.5), "beta": (200, 0.1), "gamma": (300, 0.3), "delta": (400, "nan")}
    for name, (step, loss) in losses.items():
        save_snapshot(
            tmp_path / f"{name}.safetensors",
            {"w": torch.full((3,), float(step))},
            step=step,
            metrics={"val_loss": float(loss), "lr": 1.0},
        )
    listed = json.loads(command("list", tmp_path, "--json"))
    assert listed["unit"] == "step"
    assert [entry["step"] for entry in listed["checkpoints"]] == [100, 200, 300, 400]
    assert listed["checkpoints"][1]["metrics"] == {"val_loss": 0.1, "lr": 1.0}
    out = tmp_path / "best.safetensors"
    command("average", tmp_path, "--best", "2", "--metric", "val_loss", "-o", out)
    assert torch.equal(safetensors.torch.load_file(out)["w"], torch.full((3,), 250.0))


def test_an_average_of_snapshots_does_not_take_the_metrics_of_the_last(tmp_path):
    paths = [
        save_snapshot(
            tmp_path / f"step-{step}.safetensors",
            {"w": torch.full((3,), float(step))},
            step=step,
            metrics={"val_loss": 1 / step},
        )
        for step in (1, 2)
    ]
    out = tmp_path / "average.safetensors"
    command("average", *paths, "-o", out)
    inside = read_inside(str(out))
    assert inside.averaged
    assert not inside.metrics


def test_ema_per_step_reads_the_steps(tmp_path):
    steps = (10, 20, 50)
    for step in steps:
        tensors = {"w": torch.full((2,), float(step), dtype=torch.float64)}
        save_snapshot(tmp_path / f"{'abc'[steps.index(step)]}.safetensors", tensors, step=step)
    out = tmp_path / "ema.safetensors"
    command("ema", tmp_path, "--decay", "0.9", "--per-step", "-o", out)
    first = 10 * 0.9**10 + 20 * (1 - 0.9**10)
    expected = first * 0.9**30 + 50 * (1 - 0.9**30)
    assert safetensors.torch.load_file(out)["w"].tolist() == pytest.approx([expected] * 2)


def test_posthoc_reads_the_profile_from_the_recipe(tmp_path):
    from swavg import weights

    gammas = [weights.gamma_from_sigma_rel(width) for width in (0.05, 0.10)]
    paths = []
    for step in (100, 200):
        for index, gamma in enumerate(gammas):
            path = tmp_path / f"profile{index}-step-{step}.safetensors"
            value = torch.full((2,), step + index, dtype=torch.float64)
            recipe = {"method": "power ema", "step": step, "profile": {"gamma": gamma}}
            paths.append(save_snapshot(path, {"w": value}, step=step, recipe=recipe))
    out = tmp_path / "out.safetensors"
    command("posthoc", *paths, "--sigma-rel", "0.08", "-o", out)
    target = weights.gamma_from_sigma_rel(0.08)
    numbers = weights.posthoc([100, 100, 200, 200], gammas * 2, 200, target)
    expected = sum(w * v for w, v in zip(numbers, (100, 101, 200, 201), strict=True))
    assert safetensors.torch.load_file(out)["w"].tolist() == pytest.approx([expected] * 2)


def test_a_recipe_marks_an_average_and_keeps_its_metrics(tmp_path):
    path = save_snapshot(
        tmp_path / "ema.safetensors",
        {"w": torch.ones(1)},
        step=7,
        metrics={"val_loss": 2.0},
        recipe={"method": "ema", "decay": 0.9},
    )
    inside = read_inside(str(path))
    assert inside.averaged
    assert (dict(inside.counts), dict(inside.metrics)) == ({"step": 7}, {"val_loss": 2.0})


def test_the_step_of_an_average_is_that_of_its_recipe_not_of_its_last_input(tmp_path):
    paths = [
        save_snapshot(
            tmp_path / f"step-{step}.safetensors",
            {"w": torch.ones(2)},
            step=step,
            recipe={"method": "power ema", "step": step, "profile": {"gamma": 6.94}},
        )
        for step in (100, 200, 300)
    ]
    out = tmp_path / "out.safetensors"
    command("posthoc", *paths, "--sigma-rel", "0.1", "--at-step", "250", "-o", out)
    assert read_inside(str(out)).counts == {"step": 250}


def test_an_existing_file_is_replaced_only_by_force(tmp_path):
    path = tmp_path / "a.safetensors"
    save_snapshot(path, {"w": torch.ones(1)})
    with pytest.raises(OutputError, match=r"exists already.*force=True"):
        save_snapshot(path, {"w": torch.zeros(1)})
    assert safetensors.torch.load_file(path)["w"].item() == 1
    save_snapshot(path, {"w": torch.zeros(1)}, force=True)
    assert safetensors.torch.load_file(path)["w"].item() == 0


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def full(fd, data, offset, write=os.pwrite):
        calls.append(fd)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="disk is full"):
        save_snapshot(tmp_path / "a.safetensors", Tied())
    assert os.listdir(tmp_path) == []


def test_extra_state_is_left_out_and_other_objects_are_refused(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            raise AssertionError

    path = save_snapshot(tmp_path / "a.safetensors", nn.Sequential(Extra(2, 2)))
    assert set(safetensors.torch.load_file(path)) == {"0.weight", "0.bias"}
    with pytest.raises(RequestError, match="'epoch' is int"):
        save_snapshot(tmp_path / "b.safetensors", {"w": torch.ones(1), "epoch": 3})
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"step": -1}, "step is -1"),
        ({"step": 1.5}, r"step is 1\.5"),
        ({"epoch": True}, "epoch is True"),
        ({"metrics": {"acc": torch.ones(2)}}, "'acc' is no single number"),
        ({"metrics": {"acc": None}}, "'acc' is no single number: NoneType"),
        ({"metadata": {"step": "3"}}, "'step' is set by save_snapshot"),
        ({"metadata": {"run": 3}}, "'run' is 3"),
        ({"model": [torch.ones(1)]}, "not of list"),
        ({"model": {}}, "no tensor"),
        ({"model": nn.Linear(2, 2, device="meta")}, "'weight' is on the meta device"),
        ({"model": {"s": torch.eye(2).to_sparse()}}, "'s' is sparse"),
        ({"model": {"z": torch.ones(1, dtype=torch.complex128)}}, "'z' is complex128"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_name(arguments, words, tmp_path):
    with pytest.raises(RequestError, match=words):
        save_snapshot(tmp_path / "a.safetensors", **{"model": {"w": torch.ones(1)}} | arguments)
    assert os.listdir(tmp_path) == []


def test_parameters_that_zero_3_has_spread_are_refused(tmp_path):
    model = nn.Linear(4, 4)
    for parameter in model.parameters():
        parameter.ds_id, parameter.data = 0, torch.empty(0)
    with pytest.raises(RequestError, match="'weight' has no values here: DeepSpeed's ZeRO-3"):
        save_snapshot(tmp_path / "a.safetensors", model)
    assert os.listdir(tmp_path) == []


_RANKS = """
from swavg.errors import OutputError
from swavg.training import save_snapshot
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
if rank == 0:
    torch.save(model.state_dict(), f"{folder}/whole.pt")
save_snapshot(f"{folder}/ddp.safetensors", nn.parallel.DistributedDataParallel(model), step=2)
sharded = fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
sharded.eval()(torch.zeros(2, 3))
save_snapshot(f"{folder}/fsdp.safetensors", sharded, step=3, metrics={"loss": 1.0})
try:
    save_snapshot(f"{folder}/fsdp.safetensors", sharded, step=3)
except OutputError as error:
    print(error)
"""


@pytest.mark.slow
def test_rank_0_writes_a_ddp_and_an_fsdp_model_and_all_learn_of_a_failure(tmp_path):
    outputs = ranks(_RANKS, tmp_path)
    whole = torch.load(tmp_path / "whole.pt")
    for name in ("ddp", "fsdp"):
        same(safetensors.torch.load_file(tmp_path / f"{name}.safetensors"), whole)
    assert read_inside(str(tmp_path / "fsdp.safetensors")).metrics == {"loss": 1.0}
    assert "exists already" in outputs[0]
    assert "rank 0 could not write it: exists already" in outputs[1]
    assert debris(tmp_path) == []


def test_the_file_opens_with_swavg_and_is_no_average(net, tmp_path):
    path = save_snapshot(tmp_path / "a.safetensors", net, step=3)
    checkpoint = open_checkpoint(str(path))
    assert set(checkpoint) == set(net.state_dict())
    assert "swavg" not in checkpoint.metadata


def test_a_mapping_loses_what_is_of_wrappers_for_certain_and_no_more(tmp_path):
    names = {
        "module._orig_mod.a.w": "a.w",
        "module.b._fsdp_wrapped_module.w": "b.w",
        "module.c.module.w": "c.module.w",
    }
    path = save_snapshot(tmp_path / "s.safetensors", dict.fromkeys(names, torch.ones(2)), step=1)
    assert sorted(safetensors.torch.load_file(path)) == sorted(names.values())
    both = ["module.a", "a"]
    path = save_snapshot(tmp_path / "t.safetensors", dict.fromkeys(both, torch.ones(2)), step=1)
    assert sorted(safetensors.torch.load_file(path)) == sorted(both)
