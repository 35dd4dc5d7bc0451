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
from swavg.console.surface import distances_note, surface_lines, surface_report
from swavg.errors import MissingDependencyError, NumericsError, RequestError
from swavg.evaluation.landscape import drawing
from swavg.evaluation.landscape.figure import draw
from swavg.evaluation.landscape.grid import make_grid
from swavg.evaluation.landscape.line import Line
from swavg.evaluation.landscape.line_figure import draw as draw_line
from swavg.evaluation.landscape.plane import Plane, Position
from swavg.evaluation.landscape.route import Route
from swavg.evaluation.landscape.surface import Place, Surface
from swavg.evaluation.survey import Value

pytestmark = pytest.mark.slow

PLANE = Plane(4.0, 1.0, 3.0)
TRAIL = [Position(-1.0, 1.0), Position(0.5, 0.2), Position(2.0, 2.5)]


def bowl(x, y):
    return 0.1 + 0.02 * ((x - 1.5) ** 2 + 2 * (y - 1) ** 2)


def surface(value=bowl, shape=(9, 7), trail=TRAIL, error=True, margin=0.2):
    corners = PLANE.corners
    grid = make_grid([*corners, *trail], shape, margin)
    x, y = np.meshgrid(grid.xs, grid.ys)
    loss = np.asarray(value(x, y), np.float64)
    named = [Place("corner", f"W{i + 1}", p, bowl(p.x, p.y), 0.05) for i, p in enumerate(corners)]
    named.append(Place("average", "average", PLANE.centroid, 0.12, 0.04))
    named.append(Place("mark", "ema $x", Position(2.0, 1.0, 0.5), 0.11, None))
    named += [Place("trail", str(i), p) for i, p in enumerate(trail)]
    rate = np.clip(loss / 2, 0, 1) if error else None
    return Surface(grid, loss, rate, tuple(named), 1234)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def legend(figure):
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def drawn_in(axes):
    return {line.get_gid(): line.get_xydata().tolist() for line in axes.lines}


def bar_of(axes):
    (bar,) = axes.child_axes
    return bar


def test_a_panel_names_its_axes_data_and_scale_and_has_the_levels_of_its_colour_bar():
    found = surface()
    (axes,) = draw(found, ["loss"], subject="test", data="train.py:test").axes
    levels = found.levels("loss")
    assert axes.get_xlabel() == "along W₂ \N{MINUS SIGN} W₁ (distance in weight space)"
    assert axes.get_ylabel() == "across W₂ \N{MINUS SIGN} W₁"
    assert axes.get_title() == "test loss, n = 1,234, train.py:test\n0.1044 to 0.705 on the plane"
    assert axes.get_aspect() == 1
    bar = bar_of(axes)
    assert bar.get_ylabel() == "test loss, bands widen upwards"
    assert [label.get_text() for label in bar.get_yticklabels()] == list(levels.texts)
    assert axes.get_xlim() == (found.grid.xs[0], found.grid.xs[-1])
    assert axes.get_ylim() == (found.grid.ys[0], found.grid.ys[-1])
    assert [text for text in texts(axes) if text] == ["W₁", "W₂", "W₃"]
    drawn = drawn_in(axes)
    assert drawn["W2"] == [[4.0, 0.0]]
    assert drawn["average"] == [[pytest.approx(5 / 3), 1.0]]
    assert drawn["ema $x"] == [[2.0, 1.0]]


def test_a_path_is_dashed_where_it_is_far_from_the_plane_and_shows_its_direction():
    far = [Position(3.0, 2.0, 0.9), Position(3.5, 2.0, 0.8)]
    figure = draw(surface(trail=[*TRAIL, *far]), ["loss"])
    (axes,) = figure.axes
    lines = {line.get_gid(): line for line in axes.lines}
    near, dashed = (lines[part].get_xydata() for part in ("near", "far"))
    assert near[[0, 1, 3, 4]].tolist() == [[p.x, p.y] for p in (*TRAIL[:2], *TRAIL[1:])]
    assert dashed[[0, 1, 3, 4]].tolist() == [[2.0, 2.5], [3.0, 2.0], [3.0, 2.0], [3.5, 2.0]]
    assert (lines["near"].get_linestyle(), lines["far"].get_linestyle()) == ("-", "--")
    assert legend(figure)[:2] == ["path, near the plane", "path, over 0.4 off the plane"]
    arrows = [text for text in axes.texts if text.get_gid() == "arrow"]
    assert [arrow.xy for arrow in arrows][-1] == (3.25, 2.0)
    assert all(arrow.xyann[0] < arrow.xy[0] for arrow in arrows)
    assert len(arrows) == 4


def test_a_long_path_has_few_arrows():
    trail = [Position(i / 100, 1.0) for i in range(300)]
    (axes,) = draw(surface(trail=trail), ["loss"]).axes
    assert 6 < sum(text.get_gid() == "arrow" for text in axes.texts) <= 12


def test_the_legend_names_points_and_how_far_they_are_off():
    assert legend(draw(surface(), ["loss"])) == [
        "path, near the plane", "average", "ema $x, 0.5 off the plane",
    ]  # fmt: skip
    found = surface(trail=())
    names = ["_first", "a-name-that-is-longer-than-there-is-room-for", "SGD", "SWA", "$"]
    places = tuple(replace(place, name=n) for place, n in zip(found.places, names, strict=True))
    assert legend(draw(replace(found, places=places), ["loss", "error"])) == [
        "W₁  _first", "W₂ a-name-that-is-l…there-is-room-for", "W₃ SGD", "SWA",
        "$, 0.5 off the plane",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "title"),
    [
        (lambda x, y: 0.7 + 0.001 * bowl(x, y), "flat: varies by 0.09% around 0.7004 on the plane"),
        (lambda x, y: 0.7 + 0 * x, "flat: 0.7 everywhere on the plane"),
        (lambda x, y: 1000 * bowl(x, y), "104.4 to 705 on the plane"),
    ],
)
def test_a_flat_surface_says_so_in_figure_and_terminal(value, title, capsys):
    found = surface(value)
    (axes,) = draw(found, ["loss"]).axes
    assert axes.get_title().splitlines()[1] == title
    surface_report(found, ["loss"])
    shown = title.removesuffix(" on the plane")
    assert f"loss on the grid: {shown}, lowest at (" in capsys.readouterr().err


def test_bands_of_one_width_are_not_said_to_widen():
    (axes,) = draw(surface(lambda x, y: 0.7 + 0 * x), ["loss"]).axes
    assert bar_of(axes).get_ylabel() == "loss"


def test_both_metrics_stand_side_by_side_and_errors_are_in_percent():
    figure = draw(surface(), ["loss", "error"])
    assert [axes.get_title().partition(",")[0] for axes in figure.axes] == [
        "loss", "error rate (%)",
    ]  # fmt: skip
    assert figure.axes[1].get_title().endswith("\n5.222 to 35.25% on the plane")
    figure.draw_without_rendering()
    one, other = (axes.get_position() for axes in figure.axes)
    assert one.x1 < other.x0
    assert one.y0 == pytest.approx(other.y0)
    bars = [bar_of(axes).get_position() for axes in figure.axes]
    assert bars[0].x1 < other.x0
    assert [bar.y0 for bar in bars] == [pytest.approx(one.y0), pytest.approx(other.y0)]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_surface_gives_the_same_bytes(kind):
    one, other = (drawing.encoded(draw(surface(), ["loss", "error"]), kind) for _ in range(2))
    assert one == other
    assert b"date" not in one.lower() or kind != "svg"


def test_text_in_a_vector_figure_is_text():
    found = drawing.encoded(draw(surface(), ["loss"]), "svg").decode()
    assert ">along W₂ \N{MINUS SIGN} W₁ (distance in weight space)<" in found
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


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_texts_lie_apart(margin):
    figure = draw(surface(margin=margin), ["loss", "error"], data="train.py:test")
    figure.draw_without_rendering()
    boxes = [figure.legends[0].get_window_extent()]
    for axes in figure.axes:
        bar = bar_of(axes)
        found = [t for t in axes.texts if t.get_text()] + [axes.title, axes.xaxis.label]
        found += [axes.yaxis.label, bar.yaxis.label, *axes.get_xticklabels()]
        found += [*axes.get_yticklabels(), *bar.get_yticklabels()]
        boxes += [text.get_window_extent() for text in found]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2) if a.width)


def test_a_name_can_be_empty():
    found = surface()
    places = tuple(replace(place, name="") for place in found.places)
    figure = draw(replace(found, places=places), ["loss"])
    assert set(texts(figure.axes[0])) == {""}
    assert legend(figure) == ["path, near the plane"]
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

    figure = draw(surface(cliff), ["loss"])
    assert "not finite" in legend(figure)
    assert "not finite" not in legend(draw(surface(), ["loss"]))
    # Nothing is drawn beyond the last points that are known.
    xs, ys = (np.array(side) for side in (surface().grid.xs, surface().grid.ys))
    paths = [path.vertices for path in figure.axes[0].collections[0].get_paths()]
    outermost = np.concatenate([path for path in paths if len(path)]).max(axis=0)
    assert outermost.tolist() == pytest.approx([xs[xs <= 3][-1], ys[ys <= 3][-1]])


def test_a_surface_of_which_no_cell_is_known_can_be_drawn():
    found = surface(lambda x, y: np.where((x == x.min()) & (y == y.min()), 1.0, np.nan))
    assert drawing.encoded(draw(found, ["loss"]), "svg")


def test_the_terminal_shows_what_is_not_known():
    def cliff(x, y):
        return np.where(x > 3, np.nan, bowl(x, y))

    shown = [line.plain for line in surface_lines(surface(cliff), "loss")]
    assert all("?" in line for line in shown if "loss" not in line)
    assert not any("?" in line.plain for line in surface_lines(surface(), "loss"))


def test_bands_are_where_the_values_are():
    found = surface(shape=(21, 21))
    (axes,) = draw(found, ["loss"]).axes
    lines = axes.collections[1]
    for edge, path in zip(found.levels("loss").edges[1:], lines.get_paths(), strict=True):
        x, y = path.vertices.T
        assert np.abs(bowl(x, y) - edge).max() < 0.03 * edge


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
████████████▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓████████████
███████▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓███████
████▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓████
▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▒ 3 ▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓
▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓
▓▓▓▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒•▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓▓▓▓
▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒▒░░░░░░░░░░░░▒▒▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓  loss
▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒░░░░░░░░░░░░░░░░░░░░▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓  ██ from 0.521
▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒░░░░░░░░░░······░░░░░░░░░░▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓  ▓▓ to   0.521
▓▓▓▓▓▒▒▒▒▒▒▒▒░░░░░░░·······  ·······░░░░░░░▒▒▒▒▒▒▒▒▓▓▓▓▓  ▒▒ to   0.294
▓▓▓▓▒▒▒▒▒▒▒▒░░░░░░····            ····░░░░░░▒▒▒▒▒▒▒▒▓▓▓▓  ░░ to   0.190
▓▓▓▓▒▒▒▒•▒▒▒░░░░░░···        *  a  ···░░░░░░▒▒▒▒▒▒▒▒▓▓▓▓  ·· to   0.144
▓▓▓▓▒▒▒▒▒▒▒▒░░░░░░···              ···░░░░░░▒▒▒▒▒▒▒▒▓▓▓▓     to   0.122
▓▓▓▓▒▒▒▒▒▒▒▒░░░░░░···              ···░░░░░░▒▒▒▒▒▒▒▒▓▓▓▓
▓▓▓▓▓▒▒▒▒▒▒▒▒░░░░░░░················░░░░░░░▒▒▒▒▒▒▒▒▓▓▓▓▓
▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒ 1 ░░•░░░░······░░░░░░░░░░▒▒▒▒▒▒ 2 ▓▓▓▓▓▓
▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒░░░░░░░░░░░░░░░░░░░░▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓
▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒░░░░░░░░▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓
▓▓▓▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓▓▓▓
▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓
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
    figure = draw_line(
        line([3, 1, 2, 4, 2, 2, 3]),
        ["loss"],
        labels=["A", "B"],
        subject="test",
        data="train.py:test",
    )
    (axes,) = figure.axes
    drawn = {each.get_gid(): each.get_xydata().tolist() for each in axes.lines}
    assert drawn["straight"] == [[0, 1], [2, 2]]
    assert drawn["mean"] == [[1, 4]]
    assert drawn["loss"][0] == [-0.5, 3]
    (top,) = axes.child_axes
    assert [label.get_text() for label in top.get_xticklabels()] == ["A", "B"]
    assert axes.get_ylabel() == "test loss"
    assert axes.get_xlabel() == "along the line (distance in weight space)"
    assert axes.get_title() == "test loss, n = 9, train.py:test\na barrier: do not average these"
    # From the straight line up.
    assert drawn["barrier"] == [[1, 1.5], [1, 4]]
    assert legend(figure) == [
        "straight line between them", "checkpoints", "their mean", "highest barrier: 2.5 of loss",
    ]  # fmt: skip


def test_a_line_without_a_barrier_says_so():
    figure = draw_line(line([3, 2, 1, 1, 1, 2, 3], errors=[0.1] * 7), ["loss", "error"])
    assert not [name for name in legend(figure) if "barrier" in name]
    assert figure.axes[0].get_title() == "loss and error, n = 9\nno barrier: averaging is safe"


def test_names_of_many_checkpoints_slant_and_some_are_left_out():
    ts = tuple(i / 2 for i in range(79))
    values = tuple(Value(1 + t % 1, None, 9) for t in ts)
    names = tuple(f"step-{i}" for i in range(40))
    found = Line(Route(names, (2.0,) * 39, ts), values, values[0])
    figure = draw_line(found, ["loss"])
    figure.draw_without_rendering()
    (top,) = figure.axes[0].child_axes
    labels = top.get_xticklabels()
    assert [label.get_text() for label in labels] == [f"step-{i}" for i in range(0, 40, 3)]
    assert {label.get_rotation() for label in labels} == {30}


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
