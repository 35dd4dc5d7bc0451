"""Flax files (MessagePack, of flax.serialization): read, and written as safetensors.

The reader is imported when such a file is there.
"""

from __future__ import annotations

from swavg.formats.layout import Format, Later


def _is_flax(head: bytes) -> bool:
    """A map that is not empty, whose first key is a text."""
    counts = {0xDE: 2, 0xDF: 4}
    if not head or not (0x81 <= head[0] <= 0x8F or head[0] in counts):
        return False
    key = head[1 + counts.get(head[0], 0) :][:1]
    return key != b"" and (0xA0 <= key[0] <= 0xBF or 0xD9 <= key[0] <= 0xDB)


FORMAT = Format("flax", (".msgpack",), _is_flax, Later("flax.reader:open_flax"), data=True)
