"""safetensors files of arrays of any dtype, by the library's core."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from swavg.dtypes import BY_SAFETENSORS

Array = np.ndarray[Any, Any]


def write_safetensors(
    path: Path, tensors: Mapping[str, Array], metadata: dict[str, str] | None = None
) -> None:
    # The core of the library: its writer for NumPy knows no float8.
    from safetensors._safetensors_rust import TensorSpec

    specs = {
        name: TensorSpec(
            dtype="bool" if array.dtype == np.bool_ else str(array.dtype),
            shape=list(array.shape),
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
        for name, array in tensors.items()
    }
    safetensors.serialize_file(specs, path, metadata)


def read_safetensors(path: Path) -> dict[str, Array]:
    return {
        name: np.frombuffer(bytes(found["data"]), BY_SAFETENSORS[found["dtype"]].numpy()).reshape(
            found["shape"]
        )
        for name, found in safetensors.deserialize(path.read_bytes())
    }
