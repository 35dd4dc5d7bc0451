"""How values with thousands of parts are shown in a shell and in a notebook."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from itertools import islice
from typing import Any

_FIRST = 3
_WIDEST = 100
_PLAIN = (str, int, float, type(None))


class ShortRepr:
    """Shown as a table of a few lines, whatever it holds: of its :meth:`facts` those that are not
    empty. A dataclass needs ``repr=False``."""

    __slots__ = ()

    def facts(self) -> Mapping[str, object]:
        """What is shown, by name: of a dataclass all fields."""
        own: Any = self
        return {each.name: getattr(self, each.name) for each in fields(own) if each.repr}

    def _rows(self) -> dict[str, str]:
        facts = self.facts().items()
        return {name: _short(value) for name, value in facts if not _is_empty(value)}

    def __repr__(self) -> str:
        rows = self._rows()
        widest = max(map(len, rows), default=0)
        lines = [f"  {name:<{widest}}  {text}" for name, text in rows.items()]
        return "\n".join([type(self).__name__, *lines])

    def _repr_html_(self) -> str:
        """The table in a notebook."""
        from html import escape

        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(text)}</td></tr>"
            for name, text in self._rows().items()
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"


def _is_empty(value: object) -> bool:
    return value is None or value is False or (isinstance(value, Collection) and not len(value))


def _short(value: object) -> str:
    """``value`` in one line of a bounded length."""
    if not isinstance(value, Collection) or isinstance(value, (str, bytes)):
        return _one(value)
    count: int = len(value)
    first: list[object] = [*islice(value, _FIRST)]
    if isinstance(value, Mapping):
        parts = [f"{_one(key)}: {_one(value[key])}" for key in first]
    elif first and not isinstance(first[0], _PLAIN):
        return f"{count:,} {type(first[0]).__name__}"
    else:
        parts = [_one(each) for each in first]
    return ", ".join(parts) + (f" and {count - _FIRST:,} more" if count > _FIRST else "")


def _one(value: object) -> str:
    """A plain value as it is, without terminal codes; of anything else what it is."""
    if isinstance(value, Collection) and not isinstance(value, (str, bytes)):
        return f"{len(value):,} in a {type(value).__name__}"
    if not isinstance(value, _PLAIN):
        return type(value).__name__
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    text = str(value)
    if len(text) > _WIDEST:
        text = f"{text[: _WIDEST // 2 - 1]}…{text[-_WIDEST // 2 :]}"
    return one_line(text)


def one_line(text: str) -> str:
    """``text`` without terminal codes or line ends, which could pass for rows."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
