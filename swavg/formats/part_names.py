"""What names say: of weights, which rank a file is of, what is a namesake, and what leads
elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence

from swavg.storage.paths import exists, names_in

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""Suffixes of files of weights that are averaged."""

_PART = re.compile(
    r"consolidated\.\d+(?=\.)"  # Llama
    r"|-\d{5}-of-\d{5}(?=\.)"  # shards
    r"|(?<![a-z])(?:zero_)?(?:mp|tp|pp|dp|ep|cp)_rank_\d+(?:_\d+)*"  # Megatron, DeepSpeed
    r"|layer_\d+-model_\d+(?=-model_states)"
    r"|(?:layer_\d+_)?expert_\d+(?=_mp_rank)"
    r"|-model_part-\d+|-shard\d+(?=[-.])"  # fairseq, metaseq
)
RANK_SHARD = re.compile(r"shard-(\d{5})-model-(\d{5})-of-(\d{5})\.safetensors")
"""What torch calls a rank's parts of tensors."""
_RANK = re.compile(r"(?<![A-Za-z])rank[-_]?(\d+)", re.IGNORECASE)


def in_whole(part: str, name: str) -> str:
    """What a part's tensor is called among those of all parts (``unet/conv.weight``); those of the
    folder's own weights keep their names."""
    return f"{part}/{name}" if part else name


def is_plain_name(name: str) -> bool:
    """Whether a name is that of a file or folder in the same folder."""
    return name not in ("", ".", "..") and not any(mark in name for mark in "/\\\0")


def part_mark(name: str) -> str:
    """What in a name says which part of a checkpoint it is (``mp_rank_00``); empty for others."""
    return "".join(_PART.findall(name))


def rank_of(name: str) -> int | None:
    """The number behind ``rank`` in a name, which may also count other things than processes."""
    found = _RANK.search(name)
    return None if found is None else int(found[1])


def rank_mark(path: str) -> str:
    """``rank1`` of one of the files of several ranks, which lie beside that of rank 0."""
    folder, name = os.path.split(path)
    found = _RANK.search(name)
    if found is None:
        return ""
    first = name[: found.start(1)] + "0" * len(found[1]) + name[found.end(1) :]
    return found[0] if exists(os.path.join(folder, first)) else ""


def is_of_ranks(path: str) -> bool:
    """Whether a file is of a distributed checkpoint, and holds parts of tensors or none."""
    if f"{os.sep}{path}".endswith((".distcp", f"{os.sep}.metadata")):
        return True
    folder, name = os.path.split(path)
    # What one rank alone saved is whole.
    return RANK_SHARD.fullmatch(name) is not None and any(
        other != name and RANK_SHARD.fullmatch(other) for other in names_in(folder or ".")
    )


def without_numbers(name: str) -> str:
    """A name without the marks of parts, and without numbers (a step, an epoch)."""
    return re.sub(r"\d+", "", _RANK.sub("", _PART.sub("", name)))


def matched(parts: Sequence[Iterable[str]]) -> list[list[str]] | None:
    """The names of several checkpoints' parts, each in the order of the last one's, namesakes
    beside each other. Numbers that tell no parts apart do not count if they must not. None if the
    names do not correspond."""
    lists = [list(names) for names in parts]
    for key in (str, but_for_steps):
        keyed = [{key(name): name for name in names} for names in lists]
        distinct = all(len(keys) == len(names) for keys, names in zip(keyed, lists, strict=True))
        if distinct and all(keys.keys() == keyed[-1].keys() for keys in keyed):
            return [[keys[each] for each in keyed[-1]] for keys in keyed]
    return None


def but_for_steps(name: str) -> tuple[str, int | None, str]:
    """What a name says of its part, without the numbers that may be a step."""
    return part_mark(name), rank_of(name), without_numbers(name)
