"""What a snapshot records beside its tensors: the strings of its header."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping
from typing import Any

from swavg import __version__
from swavg.engine.recipe import as_text
from swavg.errors import RequestError
from swavg.weights.checks import short

_OURS = ("step", "epoch", "metrics", "format", "swavg")


def header_strings(
    step: int | None,
    epoch: int | None,
    metrics: Mapping[str, object] | None,
    recipe: Mapping[str, object] | None,
    metadata: Mapping[str, str] | None,
) -> dict[str, str]:
    """The strings of the header. Metrics of an average stand in its recipe, so that they do not
    pass for those of an average that is made of it."""
    more = {} if metadata is None else dict(metadata)
    for name, value in more.items():
        if name in _OURS:
            raise RequestError(f"metadata: '{name}' is set by save_snapshot itself.")
        checked_text(f"metadata: '{checked_text('A name in metadata', name)}'", value)
    # transformers refuses files that do not say which framework wrote them.
    found = {"format": "pt", **more}
    for name, count in (("step", step), ("epoch", epoch)):
        if count is not None:
            found[name] = str(checked_count(name, count))
    numbers = {}
    for given in ({} if metrics is None else _mapping("metrics", metrics)).items():
        numbers[checked_text("A metric's name", given[0])] = _number(*given)
    if recipe is not None:
        own = {"metrics": numbers} if numbers else {}
        full = {"version": __version__, **_mapping("recipe", recipe), **own}
        try:
            found["swavg"] = checked_text("recipe", as_text(full))
        except (TypeError, ValueError) as error:
            raise RequestError(f"The recipe cannot be recorded as JSON: {error}.") from None
    elif numbers:
        found["metrics"] = json.dumps(numbers, ensure_ascii=False)
    return found


def _mapping(name: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise RequestError(f"{name} is {type(value).__name__}; it must be a mapping.")
    return value


def checked_count(name: str, value: Any) -> int:
    """``value`` as an int; RequestError unless it is a whole number of at least 0."""
    try:
        found = operator.index(value)
    except (TypeError, RuntimeError):
        found = -1
    if found < 0 or isinstance(value, bool):
        raise RequestError(f"{name} is {short(value)}; it must be a whole number of at least 0.")
    return found


def _number(name: str, value: Any) -> float | str:
    """A metric as JSON holds it, which has no NaN: as text then."""
    try:
        found = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise RequestError(
            f"The metric '{name}' is no single number: {type(value).__name__}.",
            hint="Give a float or a tensor of one element.",
        ) from None
    return found if math.isfinite(found) else str(found)


def checked_text(what: str, value: object) -> str:
    """``value``; RequestError unless it is text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise RequestError(f"{what} is {value!r}; only strings can be recorded.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{what} is {value!r}, which is no text that can be recorded.") from None
    return value
