"""Where the inputs of an average lie, going by what its recipe says of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from swavg.engine.origins import Input, inputs_in
from swavg.errors import InputError
from swavg.formats.composite import as_composite
from swavg.formats.parts import open_parts, open_whole
from swavg.series.search import places_below
from swavg.storage.fingerprints import fingerprint
from swavg.storage.paths import absolute, exists, is_folder, names_if_any
from swavg.storage.pool import Pool
from swavg.storage.stores import is_url

GIVE = (
    "Give the inputs, or their URLs, behind the output, in the order of its recipe, or the folder"
    " that they lie in."
)


def find_inputs(
    output: str, recipe: Mapping[str, object], key: str | None = None, *, inside: str | None = None
) -> list[str]:
    """The inputs by their names in the recipe: of several that are called so, the one of that size
    and fingerprint. They lie near the output, or anywhere below it or this process's folder; or
    ``inside`` one folder. ``key`` as in :class:`swavg.planning.policy.Policy`. InputError for one
    that is not there."""
    part = _first_part(output, key)
    told = inputs_in(recipe)
    beside = [] if inside else _folders_near(output)
    near = [_best(_named(beside, output, each.name, part), each, key) for each in told]
    if all(near):
        return [path for path in near if path]
    folders = [*_folders_below(output, inside)]
    return [
        path or _found_below(folders, output, each, part, key, inside)
        for path, each in zip(near, told, strict=True)
    ]


def _folders_below(output: str, inside: str | None) -> Iterator[str]:
    """The folders that may hold a series, at any depth: of a run of Lightning it is the third."""
    roots = [inside] if inside else [os.path.dirname(output.rstrip("/")) or ".", "."]
    for root in dict.fromkeys(roots):
        if inside or not is_url(root):
            yield from (root, *places_below(root)[0])


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
    return _best(_named(_folders_near(output), output, told.name, ""), told, None)


def _found_below(
    folders: Sequence[str], output: str, told: Input, part: str, key: str | None, inside: str | None
) -> str:
    # Where the name has folders in it, these are the last of the path.
    above = [_without(os.path.dirname(told.name), each) for each in folders]
    found = _best(_named(above, output, told.name, part), told, key)
    if found is None:
        where = f"in {inside}" if inside else "near it"
        problem = f"an input of {output}, was not found {where}"
        raise InputError(told.name, problem, hint=GIVE, absent=not _leads_out(told.name))
    return found


def _best(paths: Iterable[str], told: Input, key: str | None) -> str | None:
    """Of the paths the one that is as it was, else the first; None of none."""
    places = dict.fromkeys(paths)
    if len(places) > 1:
        return next((path for path in places if _is_it(path, told, key)), next(iter(places)))
    return next(iter(places), None)


def _folders_near(output: str) -> list[str]:
    """Beside the output, here, above the output, and the folders in these."""
    here = os.path.dirname(output.rstrip("/"))
    above = os.path.dirname(os.path.abspath(output.rstrip("/")))
    found = []
    for folder in dict.fromkeys((here, "", os.path.dirname(above))):
        inner = (os.path.join(folder, each) for each in names_if_any(folder or "."))
        found += [folder, *filter(is_folder, inner)]
    return found


def _named(folders: Iterable[str], output: str, name: str, part: str) -> Iterator[str]:
    """What is called so in the folders."""
    for folder in () if _leads_out(name) else folders:
        found = os.path.join(folder, name)
        # It may have been replaced by what was made of it.
        if exists(found) and absolute(whole := _without(part, found)) != absolute(output):
            yield whole


def _leads_out(name: str) -> bool:
    """Whether a name in a recipe is not of what lies in a folder: what a file says of itself has no
    server asked, and no other place looked at."""
    return is_url(name) or os.path.isabs(name) or os.pardir in name.split("/")


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
