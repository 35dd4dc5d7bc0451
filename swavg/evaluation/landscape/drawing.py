"""matplotlib without pyplot: a style of our own, and files whose bytes depend on the data only."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from swavg.errors import MissingDependencyError, RequestError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")

# Characters of what names the data, and of a row of a legend; inches of its height.
_DATA, _ROW, _LINE = 36, 72, 0.17

_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.labelsize": 8.5,
    "axes.titlesize": 9.0,
    "axes.linewidth": 0.7,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    # Text stays text, and names inside the files do not change from run to run.
    "svg.fonttype": "none",
    "svg.hashsalt": "swavg",
    "pdf.fonttype": 42,
    "path.simplify": False,
    "legend.fontsize": 7.5,
    # A name may have dollars.
    "text.parse_math": False,
}

_DATELESS: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def figure_format(path: str | os.PathLike[str]) -> str:
    """``png``, ``svg`` or ``pdf`` by the suffix; RequestError for others."""
    suffix = os.path.splitext(os.fspath(path))[1].lstrip(".").lower()
    if suffix not in FORMATS:
        raise RequestError(
            f"'{os.fspath(path)}' names no kind of figure.", hint="Use .png, .svg or .pdf."
        )
    return suffix


def available() -> bool:
    """Whether figures can be drawn: matplotlib is there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def require() -> None:
    """Raise MissingDependencyError without matplotlib."""
    if not available():
        raise MissingDependencyError(
            "Figures need matplotlib.", hint="pip install matplotlib, or leave out output=."
        )


@contextmanager
def styled() -> Iterator[None]:
    """In the block, matplotlib's defaults with our style; the user's settings afterwards.
    Raises MissingDependencyError without matplotlib."""
    require()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings: dict[Any, Any] = _STYLE
        matplotlib.rcParams.update(settings)
        yield


def empty_figure(width: float, height: float) -> Figure:
    """A figure of about this size in inches: what is in it finds its place."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="compressed")


def caption(axes: Axes, shown: tuple[str, int | None, str | None], scale: str) -> None:
    """Above ``axes``: the metric that is ``shown``, on how many examples, of which data; on the
    next line its ``scale``."""
    title, examples, data = shown
    count = [] if examples is None else [f"n = {examples:,}"]
    named = [] if data is None else [fitted(data, _DATA)]
    axes.set_title(", ".join([title, *count, *named]) + f"\n{scale}", fontsize=8.0)


def legend(figure: Figure, panels: Sequence[Axes], widths: float = 1) -> float:
    """Below all ``panels``, what has a label in any of them, in as many columns as there is room
    for in ``widths`` of a frame. The height that it takes, in inches."""
    entries: list[tuple[Artist, str]] = []
    for axes in panels:
        known = [name for _, name in entries]
        found = zip(*axes.get_legend_handles_labels(), strict=True)
        entries += [(handle, name) for handle, name in found if name not in known]
    if not entries:
        return 0.0
    handles, names = zip(*entries, strict=True)
    columns = max(1, round(widths * _ROW / (max(map(len, names)) + 6)))
    figure.legend(
        handles, names, loc="outside lower center", ncols=columns, frameon=False,
        handlelength=2.4, handletextpad=0.5, columnspacing=1.2, borderaxespad=0,
    )  # fmt: skip
    return _LINE * math.ceil(len(names) / columns)


def fitted(name: str, most: int) -> str:
    """``name`` in at most ``most`` characters: its middle goes first. matplotlib takes what begins
    with an underscore for a name that nobody gave."""
    name = f" {name}" if name.startswith("_") else name
    if len(name) <= most:
        return name
    return f"{name[: most // 2 - 1]}…{name[most // 2 - most :]}"


def encoded(figure: Figure, kind: str) -> bytes:
    """``figure`` as a file: 300 dots per inch in PNG; the same bytes for the same figure."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(
            buffer, format=kind, dpi=300, metadata=_DATELESS[kind],
            bbox_inches="tight", pad_inches=0.03,
        )  # fmt: skip
    return buffer.getvalue()
