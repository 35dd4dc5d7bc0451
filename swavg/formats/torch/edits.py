"""Averages that a torch file gets as bytes made beforehand: arrays whose bytes a text spells, which
is of any length, and views that overlap, whose elements lie in several tensors."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from swavg.formats.layout import FileLayout, WriteRequest
from swavg.formats.overlaps import Stretch, hull
from swavg.formats.strides import row_major_strides
from swavg.formats.template import CannotKeep, Edit, Replacement
from swavg.formats.tensors import Form, Shape
from swavg.formats.torch.arrays import FAR
from swavg.storage.pool import Pool

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def text_edits(
    request: WriteRequest, replaced: Sequence[Replacement], texts: Mapping[int, int]
) -> list[Edit]:
    """Averages of arrays, each spelled as a text with its length. ``texts`` have the offset of each
    in the template's file."""
    orders = {each.number: each.order for each in replaced if each.order is not None}
    averages = _computed(request, [each.number for each in replaced], orders)
    edits = []
    with Pool() as pool:
        for each, average in zip(replaced, averages, strict=True):
            text, at = average.decode("latin-1").encode(), texts[each.offset]
            old = int.from_bytes(pool.read(request.template.sources[0], at - 4, 4), "little")
            edits.append(Edit(at - 4, 4 + old, len(text).to_bytes(4, "little") + text))
    return edits


def view_edits(request: WriteRequest, stretches: Sequence[Stretch]) -> list[Edit]:
    """Averages of views that overlap, or that leave gaps. CannotKeep unless tensors have the same
    elements where they meet, as views of one tensor in all inputs have."""
    if not stretches:
        return []
    import numpy as np

    numbers = [n for stretch in stretches for n in stretch.values() if n is not None]
    averages = dict(zip(numbers, _computed(request, numbers, {}), strict=True))
    table, edits = request.template.tensors, []
    for stretch in stretches:
        start = min(offset for offset, _ in stretch)
        end = max(offset + hull(table.columns.forms[form]) for offset, form in stretch)
        if table.base + start >= FAR:
            raise CannotKeep("NumPy arrays share their bytes")
        with Pool() as pool:
            data = pool.read(request.template.sources[0], table.base + start, end - start)
        views = [
            (_view(data, offset - start, table.columns.forms[form]), number)
            for (offset, form), number in stretch.items()
        ]
        values = [view.tobytes() if number is None else averages[number] for view, number in views]
        for (view, _), value in zip(views, values, strict=True):
            view[...] = np.frombuffer(value, view.dtype).reshape(view.shape)
        if any(view.tobytes() != value for (view, _), value in zip(views, values, strict=True)):
            name = request.specs.names[next(n for _, n in reversed(views) if n is not None)]
            of = "with another tensor" if len(views) > 1 else "among its elements"
            raise CannotKeep(f"'{name}' shares a part of its bytes {of}, no longer the same")
        edits.append(Edit(table.base + start, len(data), bytes(data)))
    return edits


def _view(data: bytearray, offset: int, form: Form) -> npt.NDArray[np.void]:
    """A tensor in ``data``, whatever its elements are."""
    import numpy as np

    dtype, shape, strides = form
    steps = row_major_strides(shape) if strides is None else strides
    size = dtype.itemsize
    return np.ndarray(shape, f"V{size}", data, offset, [step * size for step in steps])


def _computed(
    request: WriteRequest, numbers: Sequence[int], orders: Mapping[int, Shape]
) -> list[bytes]:
    """The averages of these tensors."""
    if not numbers:
        return []
    if request.compute is None:
        raise CannotKeep("NumPy arrays change")
    of_all = request.specs.sizes
    ends = array("q", accumulate(of_all[number] for number in numbers))
    starts = array("q", [0, *ends[:-1]])
    layout = FileLayout("", ends[-1], request.specs, array("I", numbers), starts, orders=orders)
    data = request.compute(layout)
    return [data[start:end] for start, end in zip(starts, ends, strict=True)]
