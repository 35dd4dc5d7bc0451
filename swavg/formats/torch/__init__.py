"""PyTorch files: zips (.pt, .pth, .bin, .ckpt; torch 1.6 and later) and what came before.

Their readers and writers are imported when such a file is there: safetensors need none of them.
"""

from __future__ import annotations

from swavg.formats.layout import Format, Later

_LEGACY_MAGIC = b"\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")


def _is_archive(head: bytes) -> bool:
    # Its records lie in a folder; those of np.savez and of a zip of files do not.
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(b"PK\3\4") and b"/" in name and not name.endswith(b".npy")


def _is_legacy(head: bytes) -> bool:
    return head.startswith(b"\x80") and _LEGACY_MAGIC in head[:32]


FORMAT = Format(
    "torch", (".pt", ".pth", ".bin", ".ckpt", ".tar"), _is_archive,
    Later("torch.opened:open_archive"), Later("torch.writer:lay_out"),
    Later("torch.writer:plan_file"), Later("torch.opened:recipe_in"),
)  # fmt: skip
LEGACY = Format("torch-legacy", (), _is_legacy, Later("torch.opened:open_legacy"), instead="torch")
