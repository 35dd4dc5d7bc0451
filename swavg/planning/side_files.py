"""Configuration beside the weights that is not the same in all inputs."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence

from swavg.errors import InputError
from swavg.formats.configuration import is_configuration, small_json
from swavg.planning.adapters import CONFIG, SETTINGS
from swavg.storage.fingerprints import same_bytes
from swavg.storage.paths import find_file
from swavg.storage.pool import Pool

_SAYS_NOTHING = {
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_diffusers_version",
    "_from_model_config", "_name_or_path", "dtype", "inference_mode", "name_or_path",
    "peft_version", "torch_dtype", "transformers_version", "unsloth_fixed", "unsloth_version",
}  # fmt: skip
"""Fields that tell who wrote a file and how it is run, or that are made true of the output."""

_SETS = {"target_modules", "modules_to_save", "exclude_modules"}
"""Fields of adapters whose order means nothing."""

_SHOWN = 6


def differing_files(side_files: Sequence[Mapping[str, str]], shown: Sequence[str]) -> list[str]:
    """A warning of the configuration, tokenizer and adapter files that differ between folders,
    whose average gets those of the last; none where they say the same, or cannot be read.
    ``side_files`` has the paths of those of each input, by name."""
    last = max((i for i, each in enumerate(side_files) if each), default=0)
    texts = []
    with Pool() as pool:
        for name, path in side_files[last].items():
            if not is_configuration(name):
                continue
            for other, label in zip(side_files[:last], shown, strict=False):
                beside = other.get(name)
                told = beside and _told(pool, name, (beside, path), (label, shown[last]))
                if told:
                    texts.append(told)
                    break
    folders = [(each, label) for each, label in zip(side_files, shown, strict=True) if each]
    for name in dict.fromkeys(name for each, _ in folders for name in each):
        lacks = [label for each, label in folders if name not in each]
        if lacks and is_configuration(name):
            texts.append(f"{name} (not in {lacks[0]})")
    if not texts:
        return []
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return [
        f"files beside the weights differ: {'; '.join(texts[:_SHOWN])}{more}. An average gets"
        " those of its last input: check that they hold for all"
    ]


def _told(pool: Pool, name: str, paths: tuple[str, str], shown: tuple[str, str]) -> str:
    """How two files differ, in words; empty if they say the same, or one cannot be read."""
    try:
        files = [find_file(path) for path in paths]
        if files[0].identity == files[1].identity or same_bytes(pool, files[:1], files[1:]):
            return ""
        one, other = (small_json(path) if name.endswith(".json") else None for path in paths)
        if one is None or other is None:
            return f"{name} ({' and '.join(shown)})"
        # What scales the factors of adapters is looked at with their tensors.
        skipped = SETTINGS.keys() if os.path.basename(name) == CONFIG else ()
        differences = _differences(one, other, skipped)
        first = next(differences, None)
        more = sum(1 for _ in differences)
    except InputError:
        return ""
    except RecursionError:
        return f"{name} ({' and '.join(shown)})"
    if first is None:
        return ""
    place, *values = first
    facts = ", ".join(f"{_short(v)} in {label}" for v, label in zip(values, shown, strict=True))
    return f"{name} ({_cut(place, 80)}: {facts}{f', and {more} more' if more else ''})"


def _differences(
    one: object, other: object, skipped: Collection[str], place: str = ""
) -> Iterator[tuple[str, object, object]]:
    """Where two values of JSON differ, and what is there. A field that is null is not there."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**other, **one}:
            if key not in _SAYS_NOTHING and key not in skipped:
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
    return "nothing" if value is None else _cut(json.dumps(value, ensure_ascii=False))


def _cut(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[: most - 4]}..."
