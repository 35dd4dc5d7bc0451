"""How the elements of a tensor follow each other: arithmetic on shapes and strides."""

from __future__ import annotations

import math

from swavg.formats.tensors import Shape


def row_major_strides(shape: Shape) -> Shape:
    """Elements per step of each dimension of a packed row-major tensor."""
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def is_row_major(shape: Shape, strides: Shape) -> bool:
    """Whether elements at these strides are packed in row-major order."""
    steps = zip(shape, strides, row_major_strides(shape), strict=True)
    return all(size == 1 or stride == step for size, stride, step in steps)


def storage_order(shape: Shape, strides: Shape) -> Shape | None:
    """The axes of a dense view from the slowest to the fastest; None if it has holes or repeats."""
    axes = sorted(range(len(shape)), key=lambda axis: (-strides[axis], axis))
    # Axes of one element go first: they have no place of their own.
    axes.sort(key=lambda axis: shape[axis] != 1)
    sizes, steps = (tuple(values[axis] for axis in axes) for values in (shape, strides))
    return tuple(axes) if is_row_major(sizes, steps) else None


def regions(shape: Shape, start: int, stop: int) -> list[tuple[tuple[int, int], ...]]:
    """The row-major range ``[start, stop)`` as boxes: per dimension a ``(first, count)``."""
    if start >= stop:
        return []
    if not shape:
        return [()]
    inner, rest = math.prod(shape[1:]), shape[1:]
    first, last = start // inner, (stop - 1) // inner
    if first == last:
        part = regions(rest, start - first * inner, stop - first * inner)
        return [((first, 1), *box) for box in part]
    found: list[tuple[tuple[int, int], ...]] = []
    if start != first * inner:
        found += [((first, 1), *box) for box in regions(rest, start - first * inner, inner)]
        first += 1
    whole = stop // inner
    if whole > first:
        found.append(((first, whole - first), *((0, extent) for extent in rest)))
    if stop != whole * inner:
        found += [((whole, 1), *box) for box in regions(rest, 0, stop - whole * inner)]
    return found
