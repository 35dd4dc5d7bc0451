"""A file of a rank: what its pickle says, and where its flat tensors lie."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from swavg.errors import InputError
from swavg.formats.tensors import Shape
from swavg.formats.torch.archive import Archive, read_archive, read_graph
from swavg.formats.torch.objects import Opaque, Refused, View, is_count, mapping, name_of
from swavg.formats.torch.views import placed
from swavg.formats.zero.rows import Flat
from swavg.storage.paths import FileReader, find_part
from swavg.storage.pool import Pool
from swavg.storage.sources import Source

_MAX_DIMENSIONS = 32
_SHOWN = 200

SIXTEEN_BITS = (
    "The rounded weights of stages 1 and 2 are in mp_rank_00_model_states.pt: give those files to"
    " average them."
)


@dataclass(frozen=True, eq=False, slots=True)
class RankFile:
    """A torch zip that is source ``number`` of a checkpoint. All errors are InputErrors."""

    path: str
    number: int
    source: Source
    archive: Archive

    def dict_of(self, what: str, value: object) -> Mapping[str, object]:
        """The entries of a dictionary, by name."""
        pairs = mapping(value)
        if pairs is None:
            raise self.error(f"{what} is no dictionary")
        return {name_of(key): entry for key, entry in pairs.items()}

    def list_of(self, what: str, value: object) -> list[object]:
        if not isinstance(value, list):
            raise self.error(f"{what} is no list")
        return value

    def shapes(self, what: str, value: object) -> dict[str, Shape]:
        """Shapes by name."""
        shapes: dict[str, Shape] = {}
        for name, shape in self.dict_of(what, value).items():
            if not _is_shape(shape):
                raise self.error(f"{what} has no shape of '{name[:_SHOWN]}'")
            shapes[name] = shape
        return shapes

    def flats(self, what: str, values: Iterable[tuple[object, object]]) -> list[Flat]:
        """Tensors of floats that lie in row-major order, by name or number."""
        views: dict[str, View | Refused] = {}
        for name, value in values:
            if not isinstance(value, (View, Refused)):
                raise self.error(f"{what}.{name} is no tensor")
            views[f"{what}.{name}"] = value
        flats = []
        for each in placed(self.path, views, self.archive.locate):
            if each.strides is not None or not each.dtype.floating:
                raise self.error(f"{each.name} is no flat tensor of floats")
            flats.append(Flat(each.dtype, self.number, each.offset, math.prod(each.shape)))
        return flats

    def error(self, problem: str) -> InputError:
        problem = f"is no file of ZeRO that swavg understands: {problem}"
        return InputError(self.path, problem, hint=SIXTEEN_BITS)


def open_rank_file(pool: Pool, path: str, number: int) -> tuple[RankFile, Mapping[str, object]]:
    """The file, and the dictionary in it; foreign classes there (the scaler of the loss, the
    stage's enumeration) are stand-ins. InputError."""
    source = find_part(path, os.path.dirname(path))
    read = FileReader(pool, source)
    file = RankFile(path, number, source, read_archive(read, path, source.size))
    return file, file.dict_of("its pickle", read_graph(read, file.archive).top)


def count_in(value: object) -> int | None:
    """A count, also as the member of an enumeration, or the largest of a list."""
    if isinstance(value, Opaque) and isinstance(value.args, tuple) and len(value.args) == 1:
        (value,) = value.args
    if isinstance(value, list) and value and all(map(is_count, value)):
        value = max(value)
    return value if isinstance(value, int) and is_count(value) else None


def _is_shape(value: object) -> TypeGuard[Shape]:
    return (
        isinstance(value, tuple)
        and len(value) <= _MAX_DIMENSIONS
        and all(map(is_count, value))
        and is_count(math.prod(value))
    )
