"""Where the inputs of an average lie, going by what its recipe says of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from swavg.engine.origins import Input, inputs_in
from swavg.errors import InputError
from swavg.formats.composite import as_composite
from swavg.formats.parts import open_parts, open_whole
from swavg.storage.fingerprints import fingerprint
from swavg.storage.paths import absolute, exists, is_folder, names_if_any
from swavg.storage.pool import Pool

GIVE = "Give the inputs, or their URLs, behind the output, in the order of its recipe."


def find_inputs(output: str, recipe: Mapping[str, object], key: str | None = None) -> list[str]:
    """The inputs by their names in the recipe: of several that are called so, the one of that size
    and fingerprint. ``key`` as in :class:`swavg.planning.policy.Policy`. InputError for one that is
    nowhere near."""
    part, folders = _first_part(output, key), _folders(output)
    return [_found(output, each, part, key, folders) for each in inputs_in(recipe)]


def of_wholes(output: str, recipe: Mapping[str, object]) -> dict[str, object]:
    """The recipe of a composite with the names of its inputs, instead of those of a part; any other
    as it is."""
    part = _first_part(output)
    names = [_without(part, each.name) for each in inputs_in(recipe)]
    return {**recipe, "inputs": names} if part else dict(recipe)


def _without(part: str, path: str) -> str:
    """The path of what has a part, from that of the part, which may have another number in it."""
    for _ in filter(None, part.split("/")):
        path = os.path.dirname(path)
    return path


def _first_part(output: str, key: str | None = None) -> str:
    """The name of the part whose recipe is that of the output; empty of what has none."""
    composite = as_composite(output)
    return "" if composite is None else next(iter(open_parts(composite, key).parts))


def find_near(output: str, told: Input) -> str | None:
    """:func:`find_inputs` for one of them; None if it is nowhere near. The first one where none is
    as it was."""
    return _nearest(output, told, "", None, _folders(output))


def _nearest(
    output: str, told: Input, part: str, key: str | None, folders: Sequence[str]
) -> str | None:
    """The name is that of the ``part``, if the recipe is that of a part."""
    places = dict.fromkeys(_places(output, told.name, part, folders))
    if len(places) > 1:
        return next((path for path in places if _is_it(path, told, key)), next(iter(places)))
    return next(iter(places), None)


def _found(output: str, told: Input, part: str, key: str | None, folders: Sequence[str]) -> str:
    found = _nearest(output, told, part, key, folders)
    if found is None:
        problem = f"an input of {output}, was not found near it"
        raise InputError(told.name, problem, hint=GIVE, absent=True)
    return found


def _folders(output: str) -> list[str]:
    """Where inputs may be: beside the output, here, or in a folder of either."""
    here = os.path.dirname(output.rstrip("/"))
    above = os.path.dirname(os.path.abspath(output.rstrip("/")))
    found = []
    for folder in dict.fromkeys((here, "", os.path.dirname(above))):
        inner = (os.path.join(folder, each) for each in names_if_any(folder or "."))
        found += [folder, *filter(is_folder, inner)]
    return found


def _places(output: str, name: str, part: str, folders: Sequence[str]) -> Iterator[str]:
    """Where something of that name is."""
    for folder in folders:
        found = os.path.join(folder, name)
        # It may have been replaced by what was made of it.
        if exists(found) and absolute(whole := _without(part, found)) != absolute(output):
            yield whole


def _is_it(path: str, told: Input, key: str | None) -> bool:
    """Whether a checkpoint is of the size and fingerprint that are told, as far as they are."""
    try:
        checkpoint = open_whole(path, key=key, of_parts=True)
        if told.size not in (None, checkpoint.size):
            return False
        with Pool() as pool:
            return told.digits in (None, fingerprint(pool, checkpoint.sources)[0])
    except InputError:
        return False
