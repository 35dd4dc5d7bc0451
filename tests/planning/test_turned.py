"""A template whose axes lie in another order, averaged with tensors that lie in several boxes."""

from pathlib import Path

import numpy as np
import torch

import swavg

FOLDER = Path(__file__).parents[1] / "frameworks/deepspeed/files/stage-3/global_step4"


def test_flat_partitions_are_turned(tmp_path):
    """Elements of a ZeRO partition are cut as a flat row; those of the file have their axes
    swapped."""
    opened = swavg.open_checkpoint(FOLDER)
    first = {name: opened[name][...].astype(np.float32) for name in opened}
    turned = {
        name: torch.from_numpy(np.array(value * 3, order="F")) for name, value in first.items()
    }
    turned["seen"] = torch.from_numpy(opened["seen"][...])
    assert any(not value.is_contiguous() for value in turned.values())
    torch.save(turned, tmp_path / "turned.pt")
    swavg.average([FOLDER, tmp_path / "turned.pt"], output=tmp_path / "out.pt",
                  policy=swavg.Policy(mixed_dtypes=True, dtype="float32"))  # fmt: skip
    found = torch.load(tmp_path / "out.pt")
    del turned["seen"]
    for name, value in turned.items():
        assert found[name].stride() == value.stride(), name
        expected = (torch.from_numpy(first[name]).double() + value.double()) / 2
        assert torch.equal(found[name], expected.float()), name
