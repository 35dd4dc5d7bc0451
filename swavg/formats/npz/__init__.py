"""NumPy archives (.npz): zips of arrays. Nothing in them is unpickled.

Reader and writer are imported when such a file is there.
"""

from __future__ import annotations

from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import Format, Layout, WriteRequest
from swavg.formats.tensors import Shared
from swavg.formats.zip_recipe import recipe_in


def _is_npz(head: bytes) -> bool:
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(b"PK\3\4") and name.endswith(b".npy")


def _open(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    from swavg.formats.npz.reader import open_npz

    return open_npz(path, shared)


def _lay_out(request: WriteRequest) -> Layout:
    from swavg.formats.npz.writer import lay_out

    return lay_out(request)


FORMAT = Format("npz", (".npz",), _is_npz, _open, _lay_out, recipe_in=recipe_in, data=True)
