"""JSON as other readers take it: no key is there twice, and text is text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from swavg.errors import InputError


def loads(path: str, text: str | bytes) -> Any:
    """A value of JSON; ValueError or RecursionError if it is none, InputError for a key that is
    there twice."""
    return json.loads(text, object_pairs_hook=partial(unique, path))


def unique(path: str, pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """A JSON object as a dict; InputError if a key is there twice (for ``object_pairs_hook``)."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InputError(path, f"the key {short(key)} is there twice")
            seen.add(key)
    return found


def is_text(value: str) -> bool:
    """Whether a string can be written: no half of a surrogate pair is in it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def short(value: object) -> str:
    """``value`` as a message shows it: a hostile one could be as long as the header."""
    text = f"'{value}'" if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:180]}... ({len(text):,} characters)"
