"""Which groups of a Keras file are optimizers'."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from swavg.formats.keras.hdf5 import Dataset
from swavg.formats.tensors import Shape

_OPTIMIZER = re.compile(r"(.*_)?optimizer")
"""A group of a model's own attribute: it may have several."""
_LIKELY = re.compile(r"(.*_)?opt(im(izer)?)?(_.*)?")
"""A name that is an optimizer's where its variables are like one's."""
_DEPTH = 64
"""Groups in groups at most that are looked at."""
_OWN = "vars"
"""The group of the variables that something has besides those of its parts."""


def optimizers_in(datasets: Sequence[Dataset]) -> list[str]:
    """The paths of the groups that are optimizers': by their names at the top level; elsewhere
    those that begin with a count and a rate, where the rest is shaped like weights of the model
    or the name is likely."""
    groups: dict[str, dict[str, Dataset]] = {}
    for each in datasets:
        path, _, number = each.name.rpartition("/")
        groups.setdefault(path.removesuffix(f"/{_OWN}"), {})[number] = each
    named = dict.fromkeys(top for path in groups if _OPTIMIZER.fullmatch(top := path.split("/")[0]))
    like_one = {path for path, own in groups.items() if _begins_like_one(own)}
    for path in groups.keys() - like_one:
        # What holds other things too is a model or a layer.
        like_one.difference_update(above(path))
    weights = {shape for path in groups.keys() - like_one for shape in _shapes(groups[path])}
    slots: dict[str, set[Shape]] = {}
    for path in like_one:
        outermost = next((group for group in above(path) if group in like_one), path)
        slots.setdefault(outermost, set()).update(_shapes(groups[path]))
    found = [
        path
        for path in groups
        if path in slots
        and path.split("/")[0] not in named
        and (_LIKELY.fullmatch(path.split("/")[-1]) or (slots[path] and slots[path] <= weights))
    ]
    return [*named, *found]


def _begins_like_one(variables: Mapping[str, Dataset]) -> bool:
    """Whether there are numbers alone, of which the first are a count and a rate."""
    first = [variables.get(number) for number in "01"]
    kinds = [each.dtype.kind for each in first if each and each.dtype and each.shape == ()]
    return kinds == ["integer", "float"] and all(map(str.isdecimal, variables))


def _shapes(variables: Mapping[str, Dataset]) -> Iterator[Shape]:
    return (each.shape for each in variables.values() if each.shape)


def above(path: str) -> Iterator[str]:
    """The paths that lead to a group, the shortest first."""
    parts = path.split("/")
    return ("/".join(parts[:end]) for end in range(1, min(len(parts), _DEPTH)))
