"""Numbers and names as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from swavg.short_repr import one_line

MOST_ROWS = 20
"""Of a long list so many are shown."""
_MOST_TEXT = 300
_BYTES = (" B", " kB", " MB", " GB", " TB")
_LEFT_EIGHTHS = " ▏▎▍▌▋▊▉█"
_LOWER_EIGHTHS = " ▁▂▃▄▅▆▇█"
_SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}


def size(count: float) -> str:
    """Bytes with three digits and a decimal unit: ``90.9 MB``."""
    return _scaled(count, _BYTES)


def size_of(part: float, whole: float) -> str:
    """Two sizes in the unit of the second, with as many digits: ``12 of 140 GB``."""
    at = _unit_of(whole)
    whole, part = whole / 1000**at, part / 1000**at
    digits = 0 if at == 0 or whole >= 99.95 else 1 if whole >= 9.995 else 2
    return f"{part:.{digits}f} of {whole:.{digits}f}{_BYTES[at]}"


def number(count: float) -> str:
    """A count with three digits: ``22.7 M``."""
    return _scaled(count, ("", " k", " M", " G", " T"))


def _scaled(count: float, units: Sequence[str]) -> str:
    at = _unit_of(count)
    count /= 1000**at
    return f"{count:.0f}{units[at]}" if at == 0 or count >= 99.95 else f"{count:.3g}{units[at]}"


def _unit_of(count: float) -> int:
    """How many times it is divided by 1000."""
    at = 0
    while abs(count) >= 999.5 and at < len(_BYTES) - 1:
        count /= 1000
        at += 1
    return at


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """``1 tensor``, ``2,000 tensors``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def printable(text: str) -> str:
    """``text`` without terminal codes: what cannot be printed is escaped, lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def shortened(text: str) -> str:
    """``text`` in one line of a bounded length."""
    text = one_line(text)
    if len(text) <= _MOST_TEXT:
        return text
    return f"{text[:_MOST_TEXT]}... ({len(text):,} characters; --json shows all)"


def some(names: Sequence[str], most: int = 4) -> Sequence[str]:
    """At most ``most`` entries: the first names, and how many more there are."""
    return names if len(names) <= most else (*names[: most - 1], f"{len(names) - most + 1} more")


def mix(dtypes: Mapping[str, int], *, short: bool = False) -> tuple[str, ...]:
    """Dtypes with their share of the elements, the most frequent first; ``short`` abbreviates
    them and leaves out what is below half a percent."""
    total = sum(dtypes.values()) or 1
    parts = []
    for dtype, count in sorted(dtypes.items(), key=lambda item: -item[1]):
        share = count / total
        if short and share < 0.005:
            continue
        name = _SHORT.get(dtype, dtype) if short else dtype
        parts.append(f"{name} {share:.0%}" if 0.005 <= share < 0.995 else name)
    return tuple(parts)


def bar(share: float, width: int = 12) -> str:
    """A horizontal bar, ``share`` (0 to 1) of ``width`` columns long."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    return "█" * (eighths // 8) + _LEFT_EIGHTHS[eighths % 8].strip()


def block(eighths: int, level: int) -> str:
    """The cell at a ``level`` (0 is the lowest) of an upright bar ``eighths`` of a cell high."""
    return _LOWER_EIGHTHS[max(0, min(8, eighths - 8 * level))]


def shape_text(shape: Sequence[int]) -> str:
    """``[3, 7]``."""
    return f"[{', '.join(map(str, shape))}]"


def values_text(loss: float | None, error: float | None) -> str:
    """``loss 0.31  error 4.20%``; what is None is left out."""
    parts = [] if loss is None else [f"loss {loss:.4g}"]
    parts += [] if error is None else [f"error {error:.2%}"]
    return "  ".join(parts)
