"""Where the elements of a cut tensor lie."""

from operator import attrgetter

from swavg.dtypes import BY_NAME
from swavg.formats.tensors import Box, Made, TensorSpec
from swavg.formats.zero.rows import Cut, Flat, Row

F32 = BY_NAME["float32"]


def row(*places):
    return Row.of([Flat(F32, source, offset, numel) for source, offset, numel in places])


def boxes(cut):
    return [(box.source, box.offset, box.start[0], box.shape[0]) for box in cut.tensor.boxes]


def test_a_stretch_of_a_row_lies_in_one_flat_tensor_or_in_several():
    group = row((1, 100, 5), (2, 200, 0), (2, 200, 3), (3, 300, 4))
    cases = {
        (0, 5): [(1, 100, 0, 5)],
        (2, 2): [(1, 108, 0, 2)],
        (4, 2): [(1, 116, 0, 1), (2, 200, 1, 1)],
        (0, 12): [(1, 100, 0, 5), (2, 200, 5, 3), (3, 300, 8, 4)],
        (5, 3): [(2, 200, 0, 3)],
        (12, 0): [],
    }
    for (start, numel), expected in cases.items():
        cut = Cut(TensorSpec("w", F32, (numel,)), (group,), start, numel)
        assert boxes(cut) == expected, (start, numel)


def test_of_each_row_a_tensor_has_a_piece_the_last_ones_fewer():
    ranks = tuple(row((number, 0, 2), (number, 80, 6)) for number in range(3))
    whole = Cut(TensorSpec("w", F32, (2, 2)), ranks, 1, 2)
    # Two elements, from the end of one flat tensor to the beginning of the next.
    assert boxes(whole) == [(0, 4, 0, 1), (0, 80, 1, 1), (1, 4, 2, 1), (1, 80, 3, 1)]
    assert whole.tensor.grid == (4,)
    odd = Cut(TensorSpec("w", F32, (5,)), ranks, 2, 2)
    assert boxes(odd) == [(0, 80, 0, 2), (1, 80, 2, 2), (2, 80, 4, 1)]


def test_tensors_are_made_when_they_are_asked_for():
    cut = Cut(TensorSpec("w", F32, ()), (row((0, 40, 1)),), 0, 1)
    cuts = Made({7: cut}, attrgetter("tensor"))
    assert (7 in cuts, 0 in cuts, list(cuts), len(cuts), bool(Made({}, attrgetter("tensor")))) == (
        True, False, [7], 1, False,
    )  # fmt: skip
    assert cuts[7].boxes == (Box(0, 40, (0,), (1,)),)
    assert cuts[7].spec.shape == ()
