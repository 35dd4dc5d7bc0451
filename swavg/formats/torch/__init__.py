"""PyTorch files: zips (.pt, .pth, .bin, .ckpt; torch 1.6 and later) and what came before.

Their readers and writers are imported when such a file is there: safetensors need none of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import FileLayout, Format, Layout, WriteRequest
from swavg.formats.tensors import Shared

_LEGACY_MAGIC = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")


def _is_archive(head: bytes) -> bool:
    # Its records lie in a folder; those of np.savez and of a zip of files do not.
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(b"PK\3\4") and b"/" in name and not name.endswith(b".npy")


def _is_legacy(head: bytes) -> bool:
    return head.startswith(b"\x80") and _LEGACY_MAGIC in head[:32]


def _open(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    from swavg.formats.torch.opened import open_archive

    return open_archive(path, key, shared)


def _open_legacy(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    from swavg.formats.torch.opened import open_legacy

    return open_legacy(path, key, shared)


def _lay_out(request: WriteRequest) -> Layout:
    from swavg.formats.torch.writer import lay_out

    return lay_out(request)


def _plan_file(request: WriteRequest, numbers: Sequence[int], name: str) -> FileLayout:
    from swavg.formats.torch.writer import plan_file

    return plan_file(request, numbers, name)


def _recipe_in(path: str) -> str | None:
    from swavg.formats.torch.opened import recipe_in

    return recipe_in(path)


FORMAT = Format(
    "torch", (".pt", ".pth", ".bin", ".ckpt", ".tar"), _is_archive, _open, _lay_out, _plan_file,
    _recipe_in,
)  # fmt: skip
LEGACY = Format("torch-legacy", (), _is_legacy, _open_legacy, instead="torch")
