"""Orbax checkpoints against tensorstore, with which Orbax reads and writes arrays."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors
import tensorstore

from swavg.dtypes import BY_NAME, BY_SAFETENSORS
from swavg.formats.table import FORMATS
from swavg.testing import DTYPES, Ability, FormatTests, ramp

Array = np.ndarray[Any, Any]


class OrbaxTests(FormatTests):
    format = FORMATS["orbax"]
    suffix = ""
    # What safetensors, which is written instead, can hold.
    dtypes = tuple(name for name in DTYPES if BY_NAME[name].safetensors)
    names = ("w", "a b", "ä", "層.重み", "😀", 'quo"te', "back\\slash", "mlp/~/linear", "tab\t\x7f")
    lacks: ClassVar[Mapping[Ability, str]] = {
        "extras": "safetensors are written, which hold tensors only",
        "golden": "folders that Orbax wrote are in tests/frameworks",
        "order": "safetensors are sorted",
        "strides": "arrays are row-major",
        "ties": "each name has an array of its own",
    }
    ocdbt = True
    driver = "zarr"

    def write(self, path: Path, tensors: Mapping[str, Array]) -> None:
        path.mkdir()
        transaction = tensorstore.Transaction()
        for name, array in tensors.items():
            # Tiles, as on a mesh of devices.
            chunk = tuple(max(1, min(-(-extent // 2), 1 << 18)) for extent in array.shape)
            store = tensorstore.open(
                self.spec(path, name),
                create=True,
                dtype=array.dtype,
                shape=array.shape,
                chunk_layout=tensorstore.ChunkLayout(chunk_shape=chunk),
                transaction=transaction,
            ).result()
            store.write(array).result()
        transaction.commit_sync()
        listing = {
            str((name,)): {
                "key_metadata": [{"key": name, "key_type": 2}],
                "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
            }
            for name in tensors
        }
        content = {
            "tree_metadata": listing,
            "use_ocdbt": self.ocdbt,
            "use_zarr3": self.driver == "zarr3",
            "store_array_data_equal_to_fill_value": True,
        }
        (path / "_METADATA").write_text(json.dumps(content))

    def spec(self, path: Path, name: str) -> dict[str, object]:
        """An array where Orbax puts it."""
        base: dict[str, object] = {"driver": "file", "path": f"{path}/"}
        kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        if not self.ocdbt:
            kvstore = {"driver": "file", "path": f"{path}/{name}/"}
        return {
            "driver": self.driver,
            "kvstore": kvstore,
            "store_data_equal_to_fill_value": True,
        }

    def read(self, path: Path) -> dict[str, Array]:
        if path.is_file():
            return {
                name: np.frombuffer(
                    bytes(found["data"]), BY_SAFETENSORS[found["dtype"]].numpy()
                ).reshape(found["shape"])
                for name, found in safetensors.deserialize(path.read_bytes())
            }
        listed = json.loads((path / "_METADATA").read_text())["tree_metadata"].values()
        names = [entry["key_metadata"][0]["key"] for entry in listed]
        # Not what an earlier reader, or the writer, keeps of the database.
        fresh = tensorstore.Context()
        opened = (tensorstore.open(self.spec(path, name), context=fresh) for name in names)
        return {
            name: np.asarray(store.result().read().result())
            for name, store in zip(names, opened, strict=True)
        }

    def _small(self, folder: Path) -> Iterator[tuple[Path, bytes]]:
        path = self._path(folder)
        self.write(path, {"w": ramp(self.dtypes[0], 3), "b": ramp("int64", 1)})
        for file in path.glob("d/*"):
            # A database keeps what it was before the last array was written.
            data, reads = file.read_bytes(), partial(self._reads, file, file.read_bytes())
            # Of a commit that was begun anew nothing may be needed.
            least = 0 if reads(0) else bisect_left(range(len(data) + 1), True, key=reads)
            file.write_bytes(data[:least])
        for file in [file for file in sorted(path.rglob("*")) if file.is_file()]:
            yield file, file.read_bytes()

    def _reads(self, file: Path, data: bytes, size: int) -> bool:
        """Whether the first bytes of a file of a database are enough."""
        file.write_bytes(data[:size])
        try:
            self.read(file.parent.parent)
        except ValueError:
            return False
        return True


class TestOcdbt(OrbaxTests):
    """Orbax's default."""


@pytest.mark.slow
class TestOcdbtOfZarr3(OrbaxTests):
    driver = "zarr3"


class TestFolders(OrbaxTests):
    ocdbt = False
    names = tuple(name for name in OrbaxTests.names if "\\" not in name)


@pytest.mark.slow
class TestFoldersOfZarr3(TestFolders):
    driver = "zarr3"
