"""Figures and terminal pictures: what they show, and that they show it again."""

import builtins
import io
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from swavg.console.line import line_lines
from swavg.console.surface import distances_note, surface_lines
from swavg.errors import MissingDependencyError, NumericsError, RequestError
from swavg.evaluation.landscape import drawing
from swavg.evaluation.landscape.figure import draw
from swavg.evaluation.landscape.grid import make_grid
from swavg.evaluation.landscape.line import Line
from swavg.evaluation.landscape.line_figure import draw as draw_line
from swavg.evaluation.landscape.plane import Plane, Position
from swavg.evaluation.landscape.route import Route
from swavg.evaluation.landscape.smooth import panel_levels, smoothed
from swavg.evaluation.landscape.surface import Place, Surface
from swavg.evaluation.survey import Value

pytestmark = pytest.mark.slow

PLANE = Plane(4.0, 1.0, 3.0)
TRAIL = [Position(-1.0, 1.0), Position(0.5, 0.2), Position(2.0, 2.5)]


def bowl(x, y):
    return 0.1 + 0.02 * ((x - 1.5) ** 2 + 2 * (y - 1) ** 2)


def surface(value=bowl, shape=(9, 7), trail=TRAIL, error=True):
    corners = PLANE.corners
    grid = make_grid([*corners, *trail], shape, 0.2)
    x, y = np.meshgrid(grid.xs, grid.ys)
    loss = np.asarray(value(x, y), np.float64)
    named = [Place("corner", f"W{i + 1}", p, bowl(p.x, p.y), 0.05) for i, p in enumerate(corners)]
    named.append(Place("average", "average", PLANE.centroid, 0.12, 0.04))
    named.append(Place("mark", "ema $x", Position(2.0, 1.0, 0.5), 0.11, None))
    named += [Place("trail", str(i), p) for i, p in enumerate(trail)]
    rate = np.clip(loss / 2, 0, 1) if error else None
    return Surface(grid, loss, rate, tuple(named))


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_a_panel_is_labelled_and_has_the_levels_of_its_colour_bar():
    found = surface()
    figure = draw(found, ["loss"], subject="test")
    axes, bar = figure.axes
    levels = panel_levels(found, "loss")
    assert axes.get_xlabel() == axes.get_ylabel() == "distance in weight space"
    assert axes.get_aspect() == 1
    assert bar.get_ylabel() == "test loss"
    assert [label.get_text() for label in bar.get_yticklabels()] == list(levels.texts)
    assert axes.get_xlim() == (found.grid.xs[0], found.grid.xs[-1])
    assert axes.get_ylim() == (found.grid.ys[0], found.grid.ys[-1])
    # Each on a rim of its own.
    assert texts(axes)[::2] == texts(axes)[1::2]
    assert texts(axes)[::2] == ["$W_1$", "$W_2$", "$W_3$", "average", r"ema \$x"]
    drawn = {line.get_gid(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["W2"] == [[4.0, 0.0]]
    assert drawn["average"] == [[pytest.approx(5 / 3), 1.0]]
    assert drawn["ema $x"] == [[2.0, 1.0]]
    assert drawn["trail"] == [[p.x, p.y] for p in TRAIL]


def test_both_metrics_stand_side_by_side_and_errors_are_in_percent():
    figure = draw(surface(), ["loss", "error"])
    assert [figure.axes[1].get_ylabel(), figure.axes[3].get_ylabel()] == ["loss", "error rate (%)"]
    one, other = (figure.axes[index].get_position() for index in (0, 2))
    assert one.x1 < other.x0
    assert one.y0 == other.y0


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_surface_gives_the_same_bytes(kind):
    one, other = (drawing.encoded(draw(surface(), ["loss", "error"]), kind) for _ in range(2))
    assert one == other
    assert b"date" not in one.lower() or kind != "svg"


def test_text_in_a_vector_figure_is_text():
    found = drawing.encoded(draw(surface(), ["loss"]), "svg").decode()
    assert ">distance in weight space<" in found
    assert ">average<" in found


def test_a_png_has_300_dots_per_inch_and_can_be_read_in_grey():
    data = drawing.encoded(draw(surface(), ["loss"]), "png")
    image = Image.open(io.BytesIO(data))
    assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    figure = draw(surface(), ["loss"])
    colours = figure.axes[0].collections[0].get_facecolor()[:, :3]
    grey = colours @ [0.299, 0.587, 0.114]
    assert len(grey) > 5
    assert (np.diff(grey) > 0.03).all()


def test_names_lie_inside_the_frame_and_apart():
    figure = draw(surface(), ["loss"])
    axes = figure.axes[0]
    frame = axes.get_window_extent()
    boxes = [text.get_window_extent() for text in axes.texts[::2]]
    for index, box in enumerate(boxes):
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert frame.y0 <= box.y0
        assert box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[:index])


def test_a_name_can_be_empty():
    found = surface()
    places = tuple(replace(place, name="") for place in found.places)
    figure = draw(replace(found, places=places), ["loss"])
    assert set(texts(figure.axes[0])) == {""}
    assert drawing.encoded(figure, "svg")


def test_the_settings_of_the_user_neither_change_nor_matter():
    import matplotlib

    before = drawing.encoded(draw(surface(), ["loss"]), "svg")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "lines.linewidth": 9}):
        settings = dict(matplotlib.rcParams)
        assert drawing.encoded(draw(surface(), ["loss"]), "svg") == before
        assert dict(matplotlib.rcParams) == settings


def test_what_is_not_finite_is_hatched_and_bends_nothing():
    def cliff(x, y):
        return np.where(x > 3, np.nan, np.where(y > 3, np.inf, bowl(x, y)))

    found, whole = surface(cliff), surface()
    levels = panel_levels(whole, "loss")
    xs, ys, values = smoothed(found, "loss", levels)
    assert np.isfinite(values).all()
    grid_x, grid_y = np.array(found.grid.xs), np.array(found.grid.ys)
    known_x, known_y = grid_x[grid_x <= 3][-2], grid_y[grid_y <= 3][-2]
    # Up to a cell before the last known value the curves are those of the whole surface.
    untouched = np.ix_(ys <= known_y, xs <= known_x)
    np.testing.assert_array_equal(values[untouched], smoothed(whole, "loss", levels)[2][untouched])
    patches = [p for p in draw(found, ["loss"]).axes[0].patches if p.get_gid() == "unknown"]
    covered = {(round(p.get_x(), 9), round(p.get_y(), 9)) for p in patches}
    expected = {
        (round(float(x), 9), round(float(y), 9))
        for i, x in enumerate(grid_x[:-1])
        for j, y in enumerate(grid_y[:-1])
        if grid_x[i + 1] > 3 or grid_y[j + 1] > 3
    }
    assert covered == expected
    assert not any(p.get_gid() == "unknown" for p in draw(whole, ["loss"]).axes[0].patches)


def test_the_terminal_shows_what_is_not_known():
    def cliff(x, y):
        return np.where(x > 3, np.nan, bowl(x, y))

    shown = [line.plain for line in surface_lines(surface(cliff), "loss")]
    assert all("?" in line for line in shown if "loss" not in line)
    assert not any("?" in line.plain for line in surface_lines(surface(), "loss"))


def test_labels_keep_off_the_path():
    from swavg.evaluation.landscape.labels import along

    found = along([(0.0, 0.0), (3.0, 4.0), (3.0, 4.5)], 1.0)
    assert found[0] == (0, 0)
    assert (3.0, 4.0) in found
    steps = [math.dist(a, b) for a, b in itertools.pairwise(found)]
    assert max(steps) == pytest.approx(1)
    assert len(found) == 1 + 5 + 1
    assert along([], 1.0) == []


def test_a_drawn_surface_goes_through_the_values_of_its_grid():
    found = surface()
    levels = panel_levels(found, "loss")
    xs, ys, values = smoothed(found, "loss", levels)
    top = levels.edges[-1] + 3 * (levels.edges[-1] - levels.edges[0])
    expected = np.clip(found.loss, levels.edges[0], top)
    np.testing.assert_allclose(values[::6, ::6], expected, rtol=1e-12)
    np.testing.assert_allclose(xs[::6], found.grid.xs)
    # Between them it is nearer to the truth than straight lines are.
    x, y = np.meshgrid(xs, ys)
    inner = (slice(6, -6), slice(6, -6))
    assert np.abs(values - bowl(x, y))[inner].max() < 0.01


def test_a_surface_without_a_finite_value_is_refused():
    found = surface(lambda x, y: np.full_like(x, np.nan))
    with pytest.raises(NumericsError, match="no point of the survey has a finite loss"):
        draw(found, ["loss"])


def test_error_rates_are_drawn_only_where_there_are_any():
    with pytest.raises(NumericsError, match="no error rate"):
        draw(surface(error=False), ["error"])


@pytest.mark.parametrize("shape", [(2, 2), (2, 30), (30, 2)])
def test_small_and_narrow_grids_can_be_drawn(shape):
    assert drawing.encoded(draw(surface(shape=shape, trail=()), ["loss"]), "png")[:4] == b"\x89PNG"


def test_a_flat_surface_is_one_band():
    assert drawing.encoded(draw(surface(lambda x, y: 0 * x + 0.7), ["loss"]), "svg")


@pytest.mark.parametrize("path", ["x.jpg", "x", "x.png.txt"])
def test_a_figure_is_a_png_svg_or_pdf(path):
    with pytest.raises(RequestError, match="names no kind of figure"):
        drawing.figure_format(path)


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingDependencyError) as raised:
        draw(surface(), ["loss"])
    assert "pip install matplotlib" in raised.value.hint


PICTURE = """\
███████████████▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓███████████████
████████▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓████████
█████▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓█████
█▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓ 3 ▒▒▒▒▒▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓█
▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓
▓▓▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒•▒▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓▓▓
▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒░░░░░░░░░░░░░░▒▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓  loss
▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒░░░░░░░░░░░░░░░░░░░░▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓  ██ from  0.52
▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒░░░░░░░············░░░░░░░▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓  ▓▓ to    0.52
▓▓▓▓▓▒▒▒▒▒▒▒▒░░░░░·····          ·····░░░░░▒▒▒▒▒▒▒▒▓▓▓▓▓  ▒▒ to    0.29
▓▓▓▓▓▒▒▒▒▒▒░░░░░░·····            ·····░░░░░░▒▒▒▒▒▒▓▓▓▓▓  ░░ to    0.19
▓▓▓▒▒▒▒▒•▒▒░░░░░░····        *  a  ····░░░░░░▒▒▒▒▒▒▒▒▓▓▓  ·· to   0.144
▓▓▓▓▓▒▒▒▒▒▒░░░░░░····              ····░░░░░░▒▒▒▒▒▒▓▓▓▓▓     to   0.122
▓▓▓▓▓▒▒▒▒▒▒░░░░░░····              ····░░░░░░▒▒▒▒▒▒▓▓▓▓▓
▓▓▓▓▓▒▒▒▒▒▒▒▒░░░░░·····          ·····░░░░░▒▒▒▒▒▒▒▒▓▓▓▓▓
▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒ 1 ░░•░············░░░░░░░▒▒▒▒▒▒ 2 ▓▓▓▓▓▓
▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒░░░░░░░░░░░░░░░░░░░░░░▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓
▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒▒▒░░░░░░░░░░▒▒▒▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓
▓▓▓▓▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓▓▓▓▓
▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓
"""


CHART = """\
loss
 4│                          ▁▆▆▁
  │                         ▄████▄
  │▃                      ▃████████▃                      ▃
  │█▆▁                  ▂▆██████████▆▂                ▁▄▆██
  │███▅                ▅██████████████▅            ▂▅▇█████
  │█████▃           ▂▅██████████████████▅▅▅▅▅▅▅▅▅▆█████████
  │██████▇▂     ▁▃▆████████████████████████████████████████
 1│████████▅▁▂▄▇███████████████████████████████████████████
  └────────────────────────────────────────────────────────
            A                  *                 B
"""


def plain(lines):
    return [line.plain.rstrip() for line in lines]


def test_the_picture_of_a_surface_is_readable_without_colours():
    found = plain(surface_lines(surface(), "loss", 80))
    assert max(map(len, found)) <= 80
    assert found == PICTURE.splitlines()


def test_the_picture_in_colours_has_the_same_signs():
    coloured = surface_lines(surface(), "loss", 80, coloured=True)
    signs = "".join(line.plain for line in coloured)
    assert all(sign in signs for sign in "123*a•")
    assert "░" not in signs
    styles = {str(span.style) for line in coloured for span in line.spans}
    assert any("#440154" in style for style in styles)


def test_a_narrow_terminal_has_a_narrow_picture():
    assert max(map(len, plain(surface_lines(surface(), "loss", 40)))) <= 40


def test_what_lies_off_the_plane_is_noted():
    (note,) = distances_note(surface())
    assert note.startswith("ema $x lies 0.5 off the plane (W1 and W2 are 4 apart)")


def line(losses, ts=(-0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25), errors=None):
    rates = [None] * len(losses) if errors is None else errors
    values = tuple(Value(a, b, 9) for a, b in zip(losses, rates, strict=True))
    return Line(Route(("a", "b"), (2.0,), ts), values, values[ts.index(0.5)])


def test_a_line_has_its_ends_the_mean_and_the_straight_line_between():
    figure = draw_line(line([3, 1, 2, 4, 2, 2, 3]), ["loss"], labels=["A", "B"], subject="test")
    (axes,) = figure.axes
    drawn = {each.get_gid(): each.get_xydata().tolist() for each in axes.lines}
    assert drawn["straight"] == [[0, 1], [2, 2]]
    assert drawn["mean"] == [[1, 4]]
    assert drawn["loss"][0] == [-0.5, 3]
    assert texts(axes) == ["A", "B", "mean"]
    assert axes.get_ylabel() == "test loss"
    assert axes.get_xlabel() == "distance in weight space"


def test_a_cliff_beyond_the_ends_does_not_hide_what_lies_between():
    found = line([1e9, 1, 1.5, 2, 1.5, 1, math.nan])
    (axes,) = draw_line(found, ["loss"]).axes
    low, high = axes.get_ylim()
    assert low < 1
    assert 2 < high < 10
    one, other = (drawing.encoded(draw_line(found, ["loss"]), "svg") for _ in range(2))
    assert one == other


def test_a_barrier_is_shown_whole():
    (axes,) = draw_line(line([1, 1, 50, 100, 50, 1, 1]), ["loss"]).axes
    assert axes.get_ylim()[1] > 100


def test_the_chart_of_a_line_marks_its_ends_and_mean():
    found = plain(line_lines(line([3, 1, 2, 4, 2, 2, 3]), "loss", ["a", "b"], 60))
    assert found == CHART.splitlines()
