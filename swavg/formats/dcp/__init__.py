"""Distributed checkpoints of torch (DCP): folders of ``.metadata`` and ``*.distcp`` files, as FSDP,
torchtitan, Lightning, OLMo-core, Accelerate and Megatron-LM write them.

Reader and writer are imported when such a folder is there.
"""

from __future__ import annotations

from swavg.formats.checkpoint import Checkpoint
from swavg.formats.dcp.place import find_place
from swavg.formats.layout import Format, Layout, WriteRequest
from swavg.formats.tensors import Shared


def _open(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    from swavg.formats.dcp.opened import open_dcp

    return open_dcp(path, key, shared)


def _lay_out(request: WriteRequest) -> Layout:
    from swavg.formats.dcp.writer import lay_out

    return lay_out(request)


def _recipe_in(path: str) -> str | None:
    from swavg.formats.dcp.opened import recipe_in

    return recipe_in(path)


FORMAT = Format(
    "dcp", (), lambda head: False, _open, _lay_out, recipe_in=_recipe_in,
    holds=lambda path: find_place(path) is not None, folder=True,
)  # fmt: skip
