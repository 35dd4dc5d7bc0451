"""The plane through three checkpoints, its grid, and the values of its contours."""

import math

import numpy as np
import pytest
import torch
from checkpoints import save
from hypothesis import given
from hypothesis import strategies as st

from swavg.analysis import chunks
from swavg.errors import MismatchError, NumericsError, RequestError
from swavg.evaluation.landscape.grid import Grid, make_grid, parse_shape
from swavg.evaluation.landscape.levels import make_levels
from swavg.evaluation.landscape.plane import Plane, Position, plane_of
from swavg.evaluation.landscape.products import offset_products
from swavg.formats import open_checkpoint


def opened(folder, *states):
    """Checkpoints of these tensors."""
    return [
        open_checkpoint(save(folder / f"{index}.safetensors", state))
        for index, state in enumerate(states)
    ]


def random_states(count, dtype=torch.float32, size=500):
    generator = torch.Generator().manual_seed(3)
    centre = 100 * torch.randn(size, generator=generator)
    return [
        {
            "w": (centre + torch.randn(size, generator=generator)).to(dtype),
            "b": torch.randn(3, 2, generator=generator).to(dtype),
        }
        for _ in range(count)
    ]


def flat(state):
    """All weights of a state in one float64 vector."""
    return np.concatenate([state[name].double().numpy().ravel() for name in ("w", "b")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [8, 64, 1 << 17])
def test_inner_products_are_those_of_the_whole_vectors(tmp_path, monkeypatch, dtype, chunk):
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    states = random_states(5, dtype)
    found = offset_products(opened(tmp_path, *states), [("w",), ("b",)])
    offsets = np.stack([flat(state) - flat(states[0]) for state in states])
    expected = np.column_stack([offsets @ offsets[1], offsets @ offsets[2], (offsets**2).sum(1)])
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-9)


def test_the_plane_is_that_of_the_paper(tmp_path):
    states = random_states(4)
    names = [("w",), ("b",)]
    plane, (fourth,) = plane_of(offset_products(opened(tmp_path, *states), names), "1234")
    w1, w2, w3, w4 = map(flat, states)
    u = w2 - w1
    v = (w3 - w1) - (w3 - w1) @ u / (u @ u) * u
    across, up = u / np.linalg.norm(u), v / np.linalg.norm(v)
    for position, w in zip((*plane.corners, fourth), (w1, w2, w3, w4), strict=True):
        assert position.x == pytest.approx((w - w1) @ across, abs=1e-10)
        assert position.y == pytest.approx((w - w1) @ up, abs=1e-10)
    rest = w4 - w1 - fourth.x * across - fourth.y * up
    assert fourth.off == pytest.approx(np.linalg.norm(rest))
    # A point's coefficients make just that point of the corners.
    made = np.dot(plane.coefficients(1.7, -0.4), [w1, w2, w3])
    np.testing.assert_allclose(made, w1 + 1.7 * across - 0.4 * up, atol=1e-10)


@given(
    st.floats(0.01, 1e3), st.floats(-1e3, 1e3), st.floats(0.01, 1e3),
    st.floats(-1e3, 1e3), st.floats(-1e3, 1e3),
)  # fmt: skip
def test_coefficients_sum_to_one_and_give_the_corners_back(side, foot, height, x, y):
    plane = Plane(side, foot, height)
    found = plane.coefficients(x, y)
    # Their own size is what they are rounded to.
    assert math.fsum(found) == pytest.approx(1, abs=1e-14 * max(1, *map(abs, found)))
    for index, corner in enumerate(plane.corners):
        expected = [float(index == each) for each in range(3)]
        scale = 1 + abs(foot) / side
        assert plane.coefficients(corner.x, corner.y) == pytest.approx(expected, abs=1e-13 * scale)
    mean = plane.coefficients(plane.centroid.x, plane.centroid.y)
    assert mean == pytest.approx((1 / 3,) * 3, abs=1e-12 * (1 + abs(foot) / side))


def test_distances_in_the_plane_are_distances_between_weights():
    plane = Plane(3.0, 1.0, 2.0)
    corners = [np.array([0.0, 0, 0]), np.array([3.0, 0, 0]), np.array([1.0, 2, 0])]
    one, other = (np.dot(plane.coefficients(x, y), corners) for x, y in ((0.3, -1.2), (2.5, 0.7)))
    assert np.linalg.norm(one - other) == pytest.approx(math.hypot(2.2, 1.9))


def test_a_tied_tensor_counts_once_whatever_name_a_file_has(tmp_path):
    checkpoints = opened(tmp_path, {"head": torch.zeros(4)}, {"embed": torch.ones(4)})
    assert offset_products(checkpoints, [("embed", "head")])[1, -1] == 4


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_weights_are_pairs_of_real_ones(tmp_path, dtype):
    found = []
    for index, values in enumerate(([0j, 0j], [3 + 4j, 1j])):
        torch.save({"w": torch.tensor(values, dtype=dtype)}, tmp_path / f"{index}.pt")
        found.append(open_checkpoint(tmp_path / f"{index}.pt"))
    assert offset_products(found, [("w",)])[1, -1] == 26


def test_wrappers_in_names_do_not_count(tmp_path):
    checkpoints = opened(tmp_path, {"module.w": torch.zeros(2)}, {"_orig_mod.w": torch.ones(2)})
    assert offset_products(checkpoints, [("w",)])[1, -1] == 2


@pytest.mark.parametrize(
    ("third", "message"),
    [
        ([0.0, 0.0], "0.safetensors and 2.safetensors have the same weights"),
        ([1.0, 1.0], "1.safetensors and 2.safetensors have the same weights"),
        ([0.5, 0.5], "lie on one line"),
        ([-3.0, -3.0], "lie on one line"),
    ],
)
def test_points_that_make_no_plane_are_refused(tmp_path, third, message):
    states = [{"w": torch.tensor(values)} for values in ([0.0, 0.0], [1.0, 1.0], third)]
    products = offset_products(opened(tmp_path, *states), [("w",)])
    with pytest.raises(RequestError, match=message) as raised:
        plane_of(products, [f"{index}.safetensors" for index in range(3)])
    assert "swavg path" in raised.value.hint


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"w": torch.ones(3)}, r"w: shape: \[2\] in 0.safetensors; \[3\] in 1.safetensors"),
        ({"v": torch.ones(2)}, "w: missing"),
    ],
)
def test_checkpoints_that_do_not_match_are_refused(tmp_path, other, message):
    with pytest.raises(MismatchError, match=message):
        offset_products(opened(tmp_path, {"w": torch.ones(2)}, other), [("w",)])


def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path):
    checkpoints = opened(tmp_path, {"w": torch.ones(2)}, {"w": torch.tensor([1.0, math.nan])})
    with pytest.raises(NumericsError, match=r"1\.safetensors: 'w' lies NaN or Inf away"):
        offset_products(checkpoints, [("w",)])


def test_a_grid_reaches_beyond_its_points_by_the_margin():
    grid = make_grid([Position(0, 0), Position(10, 0), Position(4, 5)], (5, 4), 0.1)
    assert grid.xs == (-1, 2, 5, 8, 11)
    assert grid.ys == (-1, pytest.approx(4 / 3), pytest.approx(11 / 3), 6)
    assert len(grid) == 20
    assert [*grid][:6] == [(-1, -1), (2, -1), (5, -1), (8, -1), (11, -1), (-1, grid.ys[1])]


@pytest.mark.parametrize(
    ("text", "shape"), [("21", (21, 21)), ("31x21", (31, 21)), (" 3 X 4 ", (3, 4))]
)
def test_the_shape_of_a_grid_is_one_number_or_two(text, shape):
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["", "1", "21x1", "2x2x2", "-3", "3.5", "all"])
def test_no_other_shape_is_taken(text):
    with pytest.raises(RequestError, match=r"^grid is"):
        parse_shape(text)


@pytest.mark.parametrize("margin", [-0.1, math.nan, math.inf])
def test_a_margin_is_a_share(margin):
    with pytest.raises(RequestError, match=r"^margin is"):
        make_grid([Position(0, 0), Position(1, 1)], (3, 3), margin)


def test_levels_are_close_in_the_valley_and_wide_above_it():
    x, y = np.meshgrid(np.linspace(-2, 2, 21), np.linspace(-2, 2, 21))
    levels = make_levels(0.0432 + 0.3 * (x**2 + 3 * y**2))
    assert levels.edges == (0.04, 0.19, 0.27, 0.41, 0.62, 0.96, 1.49, 2.34, 3.69)
    assert levels.texts == ("0.04", "0.19", "0.27", "0.41", "0.62", "0.96", "1.49", "2.34", "3.69")
    assert levels.open_above
    assert levels.bands == 9


@given(st.lists(st.floats(allow_nan=True, width=32), min_size=1, max_size=40))
def test_levels_ascend_from_below_the_lowest_value(values):
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        with pytest.raises(NumericsError, match="no point of the survey has a finite loss"):
            make_levels(values)
        return
    levels = make_levels(values)
    assert all(one < other for one, other in zip(levels.edges, levels.edges[1:], strict=False))
    assert levels.edges[0] <= min(finite)
    assert levels.open_above or max(finite) <= levels.edges[-1]
    assert 1 <= levels.bands <= 9
    assert len(levels.texts) == len(levels.edges)


def test_a_grid_keeps_its_ends_exactly():
    grid = make_grid([Position(0.1, 0.2), Position(0.7, 0.9)], (7, 3), 0)
    assert (grid.xs[0], grid.xs[-1], grid.ys[0], grid.ys[-1]) == (0.1, 0.7, 0.2, 0.9)
    assert isinstance(grid, Grid)
