"""Distributed checkpoints of torch (DCP): folders of ``.metadata`` and ``*.distcp`` files, as FSDP,
torchtitan, Lightning, OLMo-core, Accelerate and Megatron-LM write them.

Reader and writer are imported when such a folder is there.
"""

from __future__ import annotations

from swavg.formats.dcp.place import find_place
from swavg.formats.layout import Format, Later

FORMAT = Format(
    "dcp", (), lambda head: False, Later("dcp.opened:open_dcp"), Later("dcp.writer:lay_out"),
    recipe_in=Later("dcp.opened:recipe_in"), holds=lambda path: find_place(path) is not None,
    folder=True,
)  # fmt: skip
