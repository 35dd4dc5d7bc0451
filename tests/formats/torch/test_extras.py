"""What a file says of itself comes out as plain values; single numbers in tensors are placed."""

from __future__ import annotations

import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch_reading import Opened, opened

from swavg.formats.torch.extras import Element


def saved(path: Path, content: object, *, legacy: bool = False) -> Opened:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return opened(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_known_projects_write_is_found(tmp_path: Path, legacy: bool) -> None:
    content = {
        "state_dict": {"w": torch.ones(2), "count": torch.tensor(3)},
        "global_step": torch.tensor(70_000),
        "epoch": 3,
        "metrics": {"top1": 0.5, "loss": torch.tensor([0.25])},
        "callbacks": {"ModelCheckpoint{'a': 1}": {"monitor": "val", "best": None, "score": 1.5}},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]},
        "optimizer_history": [{"num_updates": 1}, {"num_updates": 2}],
        "extra_state": {"train_iterator": {"epoch": 5}},
        "reporter": {"stats": {7: {"valid": {"acc": 0.75, "time": "long" * 1000}}}},
        "args": SimpleNamespace(lr=0.5, flag=True),
        "huge": 1 << 70,
    }
    found = saved(tmp_path / "a.pt", content, legacy=legacy)
    step, loss = found.values["global_step"], found.values["metrics.loss"]
    assert found.values == {
        "global_step": step,
        "epoch": 3,
        "metrics.top1": 0.5,
        "metrics.loss": loss,
        "callbacks.ModelCheckpoint{'a': 1}.monitor": "val",
        "callbacks.ModelCheckpoint{'a': 1}.score": 1.5,
        "optimizer_history.-1.num_updates": 2,
        "extra_state.train_iterator.epoch": 5,
        "reporter.stats.7.valid.acc": 0.75,
        "args.lr": 0.5,
    }
    data = (tmp_path / "a.pt").read_bytes()
    assert isinstance(step, Element)
    assert isinstance(loss, Element)
    assert (step.dtype.name, loss.dtype.name) == ("int64", "float32")
    assert struct.unpack_from("<q", data, step.offset) == (70_000,)
    assert struct.unpack_from("<f", data, loss.offset) == (0.25,)


def test_counts_in_a_flat_state_dict_are_found_but_not_its_parameters(tmp_path: Path) -> None:
    content = {"bn.num_batches_tracked": torch.tensor(4), "w": torch.ones(2), "step": 9}
    assert saved(tmp_path / "a.pt", content).values == {"step": 9}


def test_values_are_bounded_the_outermost_first(tmp_path: Path) -> None:
    many = {f"{n}": n for n in range(30_000)}
    found = saved(tmp_path / "a.pt", {"many": many, "w": torch.ones(1, 2), "epoch": 2})
    assert found.values["epoch"] == 2
    assert len(found.values) == 20_000 - 1


def test_values_in_a_cycle_end(tmp_path: Path) -> None:
    log: dict[str, object] = {"loss": 0.5}
    log["log"] = log
    found = saved(tmp_path / "a.pt", {"w": torch.ones(2), "log": log})
    assert found.values["log.log.log.loss"] == 0.5
