"""What all runs that make one output in parts must have in common for its bytes to be those of one
run."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any, NoReturn, cast

from swavg import __version__
from swavg.errors import InputError, quoted
from swavg.planning.plan import Plan
from swavg.storage.journals import Facts, Journals


def agree(journals: Journals, plan: Plan, count: int) -> str:
    """The digest of what all parts have in common. InputError if they have not."""
    own = _facts(plan, count)
    agreed = journals.agree(own)
    for key, here in own.items():
        there = agreed.get(key)
        if there == here:
            continue
        if key == "inputs":
            try:
                _raise_other_inputs(cast(list[Any], there), cast(list[Any], here), journals.anew)
            except (TypeError, ValueError):
                raise journals.damaged(journals.folder) from None
        way = "Say what the other parts said"
        if key == "parts":
            way = f"Go on with part=I/{there}" if there != 1 else "Go on with proceed=True"
        raise InputError(
            journals.folder,
            f"is of another run: {key} {_short(there)} there, {_short(here)} here",
            hint=f"{way}, choose another output=, or begin anew: {journals.anew}",
        )
    return _digest(own)


def _facts(plan: Plan, count: int) -> dict[str, object]:
    """What must be equal for the bytes to be equal, as plain values."""
    fixed = hashlib.sha256()
    for output in plan.outputs:
        for file in output.files:
            for offset, data in file.layout.fixed():
                fixed.update(offset.to_bytes(8, "little") + data)
    return {
        "version": __version__,
        "parts": count,
        "inputs": [[source.name, source.size, source.version] for source in plan.sources],
        "weights": [list(row.weights) for row in plan.rows],
        "options": json.loads(json.dumps(plan.policy.changed)),
        "distances": plan.distances,
        "outputs": [
            [file.layout.name, file.layout.size] for each in plan.outputs for file in each.files
        ],
        "cut": plan.cut,
        "headers": fixed.hexdigest(),
    }


def _digest(facts: Facts) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _raise_other_inputs(there: list[Any], here: list[Any], anew: str) -> NoReturn:
    """InputError that says which input is another; ``there`` and ``here`` are lists of name, size
    and version."""
    before = {name: facts for name, *facts in there}
    for name, *facts in here:
        if name in before and before[name] != facts:
            raise InputError(
                name,
                f"has changed since the first part: {_version(*before[name])} there,"
                f" {_version(*facts)} here",
                hint=f"Begin anew: {anew}",
            )
    names = [name for name, *_ in here]
    raise InputError(
        names[0],
        f"the parts are of other inputs: {quoted([*before], 4)} there, {quoted(names, 4)} here",
        hint=f"Begin anew with {anew}; if checkpoints were added meanwhile, name those there, or"
        " give to_step=.",
    )


def _version(size: int, version: object) -> str:
    """A time of change is for people; an ETag is what it is."""
    # The file system may have a time that no calendar has.
    if isinstance(version, int) and abs(version) < 1 << 62:
        version = datetime.fromtimestamp(version / 1e9).isoformat(" ", "milliseconds")
    return f"{size:,} bytes of {version}"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else text[:77] + "..."
