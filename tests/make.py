"""Tiny checkpoints made by hand: bytes of safetensors files, folders, and processes to measure."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from swavg.dtypes import BY_SAFETENSORS


def entry(code: str = "F32", shape: Sequence[Any] = (1,), span: Sequence[Any] = (0, 4)) -> Any:
    """The header's entry of one tensor."""
    return {"dtype": code, "shape": list(shape), "data_offsets": list(span)}


def raw(header: bytes | Mapping[str, Any], data: bytes = b"") -> bytes:
    """A safetensors file with this very header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def raw_file(path: Path, header: bytes | Mapping[str, Any], data: bytes = b"") -> str:
    """:func:`raw` in a file; the path as a string."""
    path.write_bytes(raw(header, data))
    return str(path)


def packed(tensors: Mapping[str, tuple[str, Sequence[int], bytes]]) -> bytes:
    """A valid file of tensors given as safetensors code, shape and bytes, in their order."""
    entries, position = {}, 0
    for name, (code, shape, data) in tensors.items():
        entries[name] = entry(code, shape, (position, position + len(data)))
        position += len(data)
    return raw(entries, b"".join(data for _, _, data in tensors.values()))


def unpacked(data: bytes, code: str) -> np.ndarray[Any, Any]:
    """The elements of packed bytes, bit by bit: the oracle for sub-byte dtypes."""
    dtype = BY_SAFETENSORS[code]
    if dtype.bits >= 8:
        return np.frombuffer(data, dtype.numpy())
    bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little").reshape(-1, dtype.bits)
    codes = (bits << np.arange(dtype.bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    return codes.view(dtype.numpy())


def arrays(path: Path, seed: int = 0, **more: np.ndarray[Any, Any]) -> str:
    """A safetensors file of two random tensors and ``more``; the path as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    made = {name: random.standard_normal((4, 6)).astype(np.float32) for name in ("a.w", "b.w")}
    path.write_bytes(safetensors.numpy.save(made | more))
    return str(path)


def sharded(
    folder: Path, shards: Mapping[str, Mapping[str, np.ndarray[Any, Any]]], **side: str
) -> str:
    """A Hugging Face folder of shards with an index; ``side`` are files as name=text, with
    ``__`` for the dot. The path as a string."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in shards.items():
        (folder / name).write_bytes(safetensors.numpy.save(dict(tensors), {"format": "pt"}))
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    size = sum(array.nbytes for tensors in shards.values() for array in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, text in side.items():
        (folder / name.replace("__", ".")).write_text(text)
    return str(folder)


def python(code: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a Python of its own, which can import swavg."""
    root = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": root},
    )


def debris(folder: Path) -> list[str]:
    """Names of temporary files that were left behind."""
    return [name for name in os.listdir(folder) if name.endswith(".swavg-partial")]
