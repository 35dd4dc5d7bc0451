"""A memo of millions of values, of which nearly none is asked for again."""

from __future__ import annotations

import pickle
from array import array
from bisect import bisect_left
from collections.abc import Sequence

from swavg.formats.torch.objects import Global, Opaque

_PASSED_OVER = Global("", "a value that was passed over")


class SparseMemo(list[object]):
    """A memo that holds little of what it counts. For what it passed over there is a stand-in."""

    def __init__(self, known: Sequence[object]) -> None:
        super().__init__(known)
        self._places = array("I", range(len(known)))
        self.total = len(known)

    def append(self, value: object) -> None:
        self.add(self.total, value)
        self.total += 1

    def add(self, place: int, value: object) -> None:
        """Hold the value of a place behind all that are held."""
        super().append(value)
        self._places.append(place)

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> object:  # type: ignore[override]
        number = bisect_left(self._places, index)
        if number < len(self._places) and self._places[number] == index:
            return super().__getitem__(number)
        return Opaque(_PASSED_OVER)

    def __setitem__(self, *_: object) -> None:
        raise pickle.UnpicklingError("changes what it has remembered")
