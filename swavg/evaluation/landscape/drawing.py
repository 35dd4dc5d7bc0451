"""matplotlib without pyplot: a style of our own, and files whose bytes depend on the data only."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from swavg.errors import MissingDependencyError, RequestError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")

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
    # Glyphs lie where their outlines do: names and their white rims are drawn apart.
    "text.hinting": "none",
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
    """A figure of this size in inches, with a canvas that measures texts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def encoded(figure: Figure, kind: str) -> bytes:
    """``figure`` as a file: 300 dots per inch in PNG; the same bytes for the same figure."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(
            buffer, format=kind, dpi=300, metadata=_DATELESS[kind],
            bbox_inches="tight", pad_inches=0.03,
        )  # fmt: skip
    return buffer.getvalue()
