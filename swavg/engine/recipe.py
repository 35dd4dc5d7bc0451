"""What was averaged and how, as metadata of the output.

The same call gives the same text: no time stamps, no absolute paths, nothing about the machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

from swavg import __version__
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.parts import open_whole
from swavg.formats.tensors import Shared
from swavg.planning.policy import Policy
from swavg.planning.row import Row
from swavg.storage.paths import absolute
from swavg.weights import is_uniform


def short_names(paths: Sequence[str]) -> tuple[str, ...]:
    """The shortest trailing parts of the paths that tell them apart (``run1/model.pt``)."""
    parts = [absolute(path).split(os.sep) for path in paths]
    distinct = {tuple(part) for part in parts}
    for length in range(1, max(map(len, parts), default=1) + 1):
        if len({part[-length:] for part in distinct}) == len(distinct):
            return tuple("/".join(part[-length:]) for part in parts)
    return tuple(paths)


def recipe(
    shown: Sequence[str], row: Row, policy: Policy, told: Mapping[str, object]
) -> dict[str, object]:
    """How a row is made, as plain values: method with its details, inputs (``shown`` are the
    names of all) with their weights and what is ``told`` of them, options that are not the
    default, and swavg's version. A mean says of how many (``n``)."""
    mean = is_uniform(row.weights)
    return {
        "method": row.method or ("mean" if mean else "weighted"),
        **({"n": len(row.weights)} if mean and row.method is None else {}),
        **row.details,
        "inputs": [shown[member] for member in row.members],
        "weights": list(row.weights),
        **told,
        "options": policy.changed,
        "version": __version__,
    }


def recipe_of(
    path: str | os.PathLike[str], key: str | None = None, shared: Shared | None = None
) -> dict[str, object]:
    """The recipe that swavg recorded in a checkpoint; empty if there is none. ``key`` as in
    :class:`swavg.planning.policy.Policy`."""
    return recorded_in(open_whole(path, key=key, shared=shared))


def recorded_in(checkpoint: Checkpoint) -> dict[str, object]:
    """The recipe that swavg recorded in an open checkpoint; empty if there is none."""
    return recipe_from(checkpoint.extras.recipe)


def recipe_from(text: str | None) -> dict[str, object]:
    """The recipe that stands in text; empty if there is none."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def as_text(value: Mapping[str, object]) -> str:
    """One line of JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    # A file name need not be UTF-8; the metadata must be.
    return text.encode(errors="backslashreplace").decode()
