"""Inner products between checkpoints, streamed in float64 from chunks of a bounded size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from swavg.analysis.chunks import Array, check, in_order, ranges, read_chunk, summed, wide
from swavg.engine.recipe import short_names
from swavg.errors import Difference, MismatchError, NumericsError
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.tensors import Tensor
from swavg.planning.match import spelling
from swavg.planning.prefixes import behind_prefix
from swavg.storage.pool import Pool

OnRead = Callable[[int, int], None]
"""Called with the bytes read so far, and in all."""

Names = Sequence[Sequence[str]]
"""A group of names for each tensor: those under which a tied parameter may be found."""


def offset_products(
    checkpoints: Sequence[Checkpoint], names: Names, on_read: OnRead | None = None
) -> Array:
    """Inner products of the checkpoints' offsets d_i = w_i - w_0 (w_0 is the first).

    Row i has <d_i, d_j> for j = 1 (and 2, if there are three or more), and last <d_i, d_i>; all in
    float64, over the tensors of ``names``. Offsets are taken before they are multiplied: the
    checkpoints of one run are far longer than they lie apart. Raises MismatchError for tensors that
    are missing or of another shape, NumericsError for NaN and Inf, InputError.
    """
    shown = short_names([checkpoint.path for checkpoint in checkpoints])
    rows = _matched(checkpoints, names, shown)
    count = len(checkpoints)
    axes = min(2, count - 1)
    pieces = (
        (row, start, stop) for row, tensors in enumerate(rows) for start, stop in ranges(*tensors)
    )

    def work(piece: tuple[int, int, int]) -> Array:
        row, start, stop = piece

        def values(index: int, slot: str) -> Array:
            tensor = rows[row][index]
            raw = read_chunk(pool, checkpoints[index], tensor, start, stop)
            return wide(raw, tensor.spec.dtype, slot)

        found = np.zeros((count, axes + 1))
        with np.errstate(all="ignore"):
            origin = values(0, "origin")
            along: list[Array] = []
            for index in range(1, count):
                slot = f"axis {index}" if index <= axes else "other"
                offset = values(index, slot)
                np.subtract(offset, origin, out=offset)
                if index <= axes:
                    along.append(offset)
                for axis, other in enumerate(along):
                    found[index, axis] = summed(offset, other)
                found[index, -1] = summed(offset, offset)
        if axes == 2:
            found[1, 1] = found[2, 0]
        return found

    total = np.zeros((count, axes + 1))
    read, whole = 0, sum(tensor.spec.nbytes for tensors in rows for tensor in tensors)
    with Pool() as pool:
        for (row, start, stop), found in in_order(pieces, work):
            if not np.isfinite(found).all():
                at = int(np.argmin(np.isfinite(found).all(axis=1)))
                raise NumericsError(
                    f"{shown[at]}: '{names[row][0]}' lies NaN or Inf away from {shown[0]}.",
                    hint="swavg inspect --stats shows which of them holds such values.",
                )
            total += found
            read += sum(tensor.spec.dtype.nbytes(stop - start) for tensor in rows[row])
            if on_read is not None:
                on_read(read, whole)
    check(*checkpoints)
    return total


def _matched(
    checkpoints: Sequence[Checkpoint], names: Names, shown: Sequence[str]
) -> list[list[Tensor]]:
    """For each group of names its tensor in every checkpoint."""
    found = []
    differences = []
    own = [name for group in names for name in group]
    spell = spelling(own, *map(list, checkpoints))
    tables = [{spell(name): name for name in checkpoint} for checkpoint in checkpoints]
    for group in names:
        tensors: list[Tensor | None] = []
        for checkpoint, table in zip(checkpoints, tables, strict=True):
            name = next((table[name] for name in map(spell, group) if name in table), None)
            tensors.append(None if name is None else checkpoint.tensors[name])
        present = [tensor for tensor in tensors if tensor is not None]
        shapes = {tensor.spec.shape for tensor in present}
        if len(present) == len(tensors) and len(shapes) == 1:
            if math.prod(shapes.pop()):
                found.append(present)
            continue
        what = "missing" if len(present) < len(tensors) else "shape"
        facts = tuple(
            (name, _fact(tensor, what)) for name, tensor in zip(shown, tensors, strict=True)
        )
        differences.append(Difference(group[0], what, facts))
    if differences:
        first = differences[0]
        found_prefix = behind_prefix([*tables, list(map(spell, own))], [*shown, "the model"])
        if found_prefix is not None:
            raise MismatchError(f"{found_prefix.fact}.", hint=found_prefix.hint)
        nowhere = [each for each in differences if {fact for _, fact in each.facts} == {"missing"}]
        if nowhere:
            more = f" and {len(nowhere) - 1} more" if len(nowhere) > 1 else ""
            raise MismatchError(
                f"the model has '{nowhere[0].name}'{more} that no checkpoint has.",
                differences=differences,
                hint="Is it their model? In a .pt file, key= chooses the state dict.",
            )
        raise MismatchError(
            f"the checkpoints have no weights in common to compare: {first}"
            if not found
            else f"{len(differences)} weights do not match: {first}",
            differences=differences,
            hint="Give checkpoints of one model; swavg diff shows in what two of them differ.",
        )
    return found


def _fact(tensor: Tensor | None, what: str) -> str:
    if tensor is None:
        return "missing"
    return "present" if what == "missing" else str(list(tensor.spec.shape))
