"""A page that says what an average is: Markdown, with the front matter of Hugging Face's cards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from swavg.console.text import counted
from swavg.engine.origins import COMMON, Input, inputs_in, lineage_in
from swavg.short_repr import one_line

_MOST = 100
"""Inputs that are listed."""
_MOST_BEHIND = 20
"""Averages behind these that are listed."""
_SHOWN = ("n", *COMMON)


def card(
    name: str,
    recipe: Mapping[str, object],
    commands: Sequence[str],
    base_models: Sequence[str] = (),
) -> str:
    """The page of the average called ``name``, as its recipe says; ``commands`` make and prove it.
    The same recipe gives the same page: no paths of a machine, no times."""
    return "\n".join([*_page(name, recipe, commands, base_models), ""])


def _page(
    name: str, recipe: Mapping[str, object], commands: Sequence[str], base_models: Sequence[str]
) -> Iterator[str]:
    inputs = inputs_in(recipe)
    yield "---"
    if base_models:
        yield from ("base_model:", *(f"- {each}" for each in base_models))
    yield from ("tags:", "- merge", "- weight-averaging", "---", "")
    made = f"{_code(recipe.get('method'))}, by swavg {_word(recipe.get('version'))}"
    yield from (f"# {one_line(name)}", "")
    yield from (f"An average of {counted(len(inputs), 'checkpoint')}: {made}.", "")
    yield from _table(inputs)
    options = recipe.get("options")
    facts = {key: value for key, value in recipe.items() if key not in _SHOWN}
    facts |= options if isinstance(options, Mapping) else {}
    if facts:
        yield from ("", *(f"- {_word(key)}: {_code(value)}" for key, value in facts.items()))
    behind = lineage_in(recipe)
    if behind:
        yield from ("", "What of it is an average itself, by its fingerprint:", "")
        yield from map(_behind, behind[:_MOST_BEHIND])
    if len(behind) > _MOST_BEHIND:
        yield f"- and {len(behind) - _MOST_BEHIND:,} more, which its recipe tells"
    yield from (
        "",
        "Its tensors are made by the first of these, and proven by the second:",
        "",
        "```sh",
        *commands,
        "```",
    )


def _table(inputs: Sequence[Input]) -> Iterator[str]:
    full = any(each.digest is not None for each in inputs)
    proof = "digest of all bytes" if full else "fingerprint"
    yield from (f"| weight | checkpoint | step | bytes | {proof} |", "|--:|---|--:|--:|---|")
    for each in inputs[:_MOST]:
        step = each.step if each.epoch is None else f"epoch {each.epoch}"
        size = None if each.size is None else f"{each.size:,}"
        digits = _word(each.digest or each.digits)
        cells = (_weight(each), _code(each.name), step, size, digits)
        row = " | ".join("" if cell is None else str(cell).replace("|", "\\|") for cell in cells)
        yield f"| {row} |"
    if len(inputs) > _MOST:
        yield f"| | and {len(inputs) - _MOST:,} more, which its recipe tells | | | |"


def _behind(recipe: Mapping[str, object]) -> str:
    inputs = inputs_in(recipe)
    names = [f"{_weight(each)} {_code(each.name)}" for each in inputs[:_MOST_BEHIND]]
    more = [f"{len(inputs) - len(names):,} more"] if len(inputs) > len(names) else []
    made = f"{recipe['fingerprint']}: {recipe.get('method')}"
    return f"- {_code(made)} of {', '.join([*names, *more])}"


def _weight(told: Input) -> str:
    return f"{told.weight:.6g}" if isinstance(told.weight, float) else _code(told.weight)


def _word(value: object) -> object:
    """A value that is a word of its own; as code where it could be more to a reader of Markdown."""
    return value if value is None or re.fullmatch(r"[\w.+~ -]+", str(value)) else _code(value)


def _code(value: object) -> str:
    """A value as code, in one line."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{one_line(text).replace('`', chr(39))}`"
