"""Configuration beside the weights that is not the same in all inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence

from swavg.formats.configuration import JSON_LIMIT, is_configuration
from swavg.storage.sources import LocalFile, Pool

_SAYS_NOTHING = {
    "_name_or_path", "name_or_path", "_commit_hash", "_diffusers_version", "transformers_version",
    "peft_version", "inference_mode", "dtype", "torch_dtype",
}  # fmt: skip
"""Fields that tell of a file's origin, or that are made true of the output."""

_ADAPTER = "adapter_config.json"
_SCALING = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
"""Fields of adapters that are looked at with their tensors."""
_SETS = {"target_modules", "modules_to_save", "exclude_modules"}
"""Fields of adapters whose order means nothing."""

_STEP = 1 << 20
_SHOWN = 6


def differing_files(side_files: Sequence[Mapping[str, str]], shown: Sequence[str]) -> list[str]:
    """A warning of the configuration, tokenizer and adapter files that differ between folders,
    whose average gets those of the last; none where they say the same. ``side_files`` has the
    paths of those of each input, by name. Raises InputError."""
    last = max((i for i, each in enumerate(side_files) if each), default=0)
    texts = []
    with Pool() as pool:
        for name, path in side_files[last].items():
            if not is_configuration(name):
                continue
            for other, label in zip(side_files[:last], shown, strict=False):
                beside = other.get(name)
                if beside is None or _same_bytes(pool, beside, path):
                    continue
                told = _told(pool, name, (beside, path), (label, shown[last]))
                if told is not None:
                    texts.append(told)
                    break
    if not texts:
        return []
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return [
        f"files beside the weights differ: {'; '.join(texts[:_SHOWN])}{more}. An average gets"
        " those of its last input: check that they hold for all"
    ]


def _same_bytes(pool: Pool, one: str, other: str) -> bool:
    files = LocalFile.find(one), LocalFile.find(other)
    if files[0].identity == files[1].identity:
        return True
    size = files[0].size
    return size == files[1].size and all(
        pool.read(files[0], at, min(_STEP, size - at))
        == pool.read(files[1], at, min(_STEP, size - at))
        for at in range(0, size, _STEP)
    )


def _told(pool: Pool, name: str, paths: tuple[str, str], shown: tuple[str, str]) -> str | None:
    """How two files that are not the same differ, in words; None if they say the same."""
    one, other = (_parsed(pool, path) if name.endswith(".json") else None for path in paths)
    if one is None or other is None:
        return f"{name} ({' and '.join(shown)})"
    skipped = _SAYS_NOTHING | (_SCALING if os.path.basename(name) == _ADAPTER else set())
    differences = _differences(one, other, skipped)
    first = next(differences, None)
    if first is None:
        return None
    place, *values = first
    facts = ", ".join(f"{_short(v)} in {label}" for v, label in zip(values, shown, strict=True))
    more = sum(1 for _ in differences)
    return f"{name} ({place}: {facts}{f', and {more} more' if more else ''})"


def _parsed(pool: Pool, path: str) -> object:
    """The value of a small JSON file; None for another."""
    file = LocalFile.find(path)
    if file.size > JSON_LIMIT:
        return None
    try:
        return json.loads(bytes(pool.read(file, 0, file.size)))
    except (ValueError, RecursionError):
        return None


def _differences(
    one: object, other: object, skipped: set[str], place: str = ""
) -> Iterator[tuple[str, object, object]]:
    """Where two values of JSON differ, and what is there. A field that is null is not there."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**other, **one}:
            if key not in skipped:
                left, right = one.get(key), other.get(key)
                if key in _SETS and isinstance(left, list) and isinstance(right, list):
                    left, right = sorted(left, key=str), sorted(right, key=str)
                yield from _differences(left, right, skipped, f"{place}.{key}" if place else key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for at, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _differences(left, right, skipped, f"{place}[{at}]")
    elif json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
        yield place, one, other


def _short(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:36]}..."
