"""Distributed checkpoints against torch itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch_arrays import array_of, tensors_of

from swavg.formats.table import FORMATS
from swavg.testing import Ability, FormatTests

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

Array = np.ndarray[Any, Any]


class TestDistributed(FormatTests):
    format = FORMATS["dcp"]
    suffix = ""
    lacks: ClassVar[Mapping[Ability, str]] = {
        "ties": "each name has bytes of its own",
        "golden": "folders of each framework are in tests/frameworks",
    }

    # A folder of 5 kB takes 20 s.
    test_a_file_that_is_cut_short_anywhere_is_refused = pytest.mark.slow(
        FormatTests.test_a_file_that_is_cut_short_anywhere_is_refused
    )
    test_a_flipped_byte_never_does_worse_than_other_values = pytest.mark.slow(
        FormatTests.test_a_flipped_byte_never_does_worse_than_other_values
    )

    def write(self, path: Path, tensors: Mapping[str, Array]) -> None:
        dcp.save(tensors_of(tensors), checkpoint_id=path, no_dist=True)

    def read(self, path: Path) -> dict[str, Array]:
        found = load(path)
        return {name: array_of(value) for name, value in found.items()}

    def write_extras(self, path: Path, tensors: Mapping[str, Array], number: int) -> None:
        state = {"model": tensors_of(tensors), "optimizer": {"step": number}}
        dcp.save(state, checkpoint_id=path, no_dist=True)

    def read_extras(self, path: Path) -> object:
        return load(path)["optimizer"]


def load(path: Path) -> dict[str, Any]:
    """The state dict that torch makes of a folder."""
    joined = path.with_name(path.name + ".joined.pt")
    dcp_to_torch_save(path, joined)
    return torch.load(joined, weights_only=False)
