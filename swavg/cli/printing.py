"""What goes to standard output as data: paths, and JSON."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence

from swavg.cli.streams import discard_stdout
from swavg.errors import OutputError

_SECOND = (
    "report", "bn", "landscape", "path", "list", "inspection", "verified", "comparison"
)  # fmt: skip
"""Those that had keys of other names before; the others are of version 1."""


def print_json(name: str, *values: Mapping[str, object]) -> None:
    """Print an object, or a list of several, each with the ``schema`` that says what it is:
    ``swavg.NAME/2``, which stands in ``schema.json`` of the package."""
    schema = f"swavg.{name}/{2 if name in _SECOND else 1}"
    shown = [_finite({"schema": schema, **value}) for value in values]
    text = json.dumps(
        shown[0] if len(shown) == 1 else shown,
        indent=2,
        ensure_ascii=not _encoding().lower().startswith("utf"),
        allow_nan=False,
    )
    # Bytes of file names that are no text.
    _write(re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text))


def _encoding() -> str:
    """That of standard output; a StringIO in its place has none."""
    return sys.stdout.encoding or "utf-8"


def _write(line: str, end: str = "\n") -> None:
    sys.stdout.write(f"{line}{end}")
    sys.stdout.flush()


def print_line(path: str, end: str = "\n") -> None:
    """Print a path: the bytes of its name, whatever the encoding of standard output."""
    _write(os.fsencode(path).decode(_encoding(), "surrogateescape"), end)


def _finite(value: object) -> object:
    """``value`` with None for floats that JSON lacks: NaN and Inf."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value


def print_published(
    name: str, values: Sequence[Mapping[str, object]], paths: Sequence[str], *, as_json: bool
) -> None:
    """Say what got its name: ``values`` as JSON, or the paths, a line each.

    All is done by then, so that standard output that cannot be written is a warning.
    """
    try:
        if as_json:
            print_json(name, *values)
            return
        for path in paths:
            print_line(path)
    except OutputError as error:
        from swavg.console.messages import warnings

        discard_stdout()
        warnings([f"{error.message}; all is done: {', '.join(paths)}"])
