"""NumPy archives (.npz): zips of arrays. Nothing in them is unpickled.

Reader and writer are imported when such a file is there.
"""

from __future__ import annotations

from swavg.formats.layout import Format, Later
from swavg.formats.zip_recipe import recipe_in


def _is_npz(head: bytes) -> bool:
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(b"PK\3\4") and name.endswith(b".npy")


FORMAT = Format(
    "npz", (".npz",), _is_npz, Later("npz.reader:open_npz"), Later("npz.writer:lay_out"),
    recipe_in=recipe_in, data=True,
)  # fmt: skip
