"""Keras: HDF5 files (.weights.h5, and whole models of older versions), and .keras archives.

Readers and writers, and h5py, are imported when such a file is there. Nothing of a model's
configuration is looked at: it may hold code.
"""

from __future__ import annotations

from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import Format, Layout, WriteRequest
from swavg.formats.tensors import Shared
from swavg.formats.zip_recipe import recipe_in
from swavg.storage.paths import find_file

_MEMBERS = (b"metadata.json", b"config.json", b"model.weights.h5")


def _is_hdf5(head: bytes) -> bool:
    return head.startswith(b"\x89HDF\r\n\x1a\n")


def _is_archive(head: bytes) -> bool:
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(b"PK\3\4") and name in _MEMBERS


def _open_hdf5(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    from swavg.formats.keras.reader import open_hdf5

    return open_hdf5(path, shared)


def _open_archive(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    from swavg.formats.keras.reader import open_archive

    return open_archive(path, shared)


def _lay_out_hdf5(request: WriteRequest) -> Layout:
    from swavg.formats.keras.writer import lay_out_hdf5

    return lay_out_hdf5(request)


def _lay_out_archive(request: WriteRequest) -> Layout:
    from swavg.formats.keras.writer import lay_out_keras

    return lay_out_keras(request)


def _recipe_in_hdf5(path: str) -> str | None:
    from swavg.formats.keras.recipe import recipe_at

    file = find_file(path)
    return recipe_at(file, 0, file.size)


HDF5 = Format(
    "hdf5", (".h5", ".hdf5"), _is_hdf5, _open_hdf5, _lay_out_hdf5, recipe_in=_recipe_in_hdf5,
    data=True,
)  # fmt: skip
ARCHIVE = Format(
    "keras", (".keras",), _is_archive, _open_archive, _lay_out_archive, recipe_in=recipe_in
)
