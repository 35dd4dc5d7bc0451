"""Keras: HDF5 files (.weights.h5, and whole models of older versions), and .keras archives.

Readers and writers, and h5py, are imported when such a file is there. Nothing of a model's
configuration is looked at: it may hold code.
"""

from __future__ import annotations

from swavg.formats.layout import Format, Later
from swavg.formats.zip_recipe import recipe_in

_MEMBERS = (b"metadata.json", b"config.json", b"model.weights.h5")


def _is_hdf5(head: bytes) -> bool:
    return head.startswith(b"\x89HDF\r\n\x1a\n")


def _is_archive(head: bytes) -> bool:
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(b"PK\3\4") and name in _MEMBERS


HDF5 = Format(
    "hdf5", (".h5", ".hdf5"), _is_hdf5, Later("keras.reader:open_hdf5"),
    Later("keras.writer:lay_out_hdf5"), recipe_in=Later("keras.recipe:recipe_in"), data=True,
)  # fmt: skip
ARCHIVE = Format(
    "keras", (".keras",), _is_archive, Later("keras.reader:open_archive"),
    Later("keras.writer:lay_out_keras"), recipe_in=recipe_in,
)  # fmt: skip
