"""How an error is told: a line for people on stderr, with ``--json`` an object on stdout, and the
exit code. Arguments of the library become options here."""

from __future__ import annotations

import errno
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import click

from swavg.errors import (
    InputError,
    MismatchError,
    OutputError,
    ReaderGoneError,
    RequestError,
    SwavgError,
    nearest,
    some,
)
from swavg.storage.paths import names_if_any, names_in
from swavg.storage.stores import is_url

# Not behind a colon: there it is a word of a recipe.
_ARGUMENT = re.compile(r"(?<![^\s(])(?<!: )(\w+)=('[^']*'|[\w.+-]*\w)?")


@dataclass(slots=True)
class Job:
    """What ``swavg run`` found in its file: errors are told as those of this command."""

    command: click.Command | None = None
    options: Sequence[str] = ()


def tell(error: SwavgError, command: click.Command | None, *, as_json: bool, verbose: bool) -> int:
    """Say what went wrong; the exit code."""
    from swavg.console import messages

    if isinstance(error, ReaderGoneError) and not verbose:
        # `| head` has read enough; whoever else went away says so itself.
        return error.exit_code
    params = command.params if command is not None else []
    message = _message(error, params)
    hint = None if error.hint is None else with_options(_possible(error.hint, params), params)
    if isinstance(error, InputError) and error.absent:
        near = _as_weight(error.path, params) or _nearest_path(error.path)
        near = near or (_what_is_there(error.path) if hint is None else None)
        hint = " ".join(filter(None, (hint, near))) or None
    differences = error.differences if isinstance(error, MismatchError) else ()
    if len(differences) > 1:
        messages.differences(differences, everything=verbose)
    messages.error(message, hint)
    if as_json and not isinstance(error, ReaderGoneError):
        facts = [
            {
                "name": difference.name,
                "what": difference.what,
                "facts": [{"input": name, "fact": fact} for name, fact in difference.facts],
            }
            for difference in differences
        ]
        print_error(error.exit_code, error.kind, message, hint, facts)
    return error.exit_code


def is_memory_short(error: MemoryError | OSError | ImportError) -> bool:
    """Whether that is why something could not be done."""
    if isinstance(error, ImportError):
        # What the loader says of a library that finds no room.
        return any(text in str(error) for text in ("failed to map", "annot allocate memory"))
    return isinstance(error, MemoryError) or error.errno == errno.ENOMEM


def tell_memory_short(*, as_json: bool) -> int:
    """Say so, with nothing that has to be imported first; the exit code."""
    message = "There is not enough memory."
    hint = "Where there are these options, use a smaller --memory, or fewer --threads."
    print(f"error {message}\n      {hint}", file=sys.stderr)
    if as_json:
        print_error(1, "memory", message, hint)
    return 1


def print_error(
    code: int,
    kind: str,
    message: str,
    hint: str | None = None,
    differences: Sequence[Mapping[str, object]] = (),
) -> None:
    """The one object on stdout that a program gets instead of a report."""
    from swavg.cli.printing import print_json

    value = {"code": code, "kind": kind, "message": message, "hint": hint}
    try:
        print_json("error", {**value, "differences": differences})
    except OutputError:
        print("swavg: standard output cannot be written", file=sys.stderr)


def _message(error: SwavgError, params: Sequence[click.Parameter]) -> str:
    if isinstance(error, RequestError) and error.argument is not None:
        name = with_options(f"{error.argument}=", params).removesuffix("=")
        return f"{name} {with_options(error.problem, params)}"
    return with_options(error.message, params)


def with_options(text: str, params: Sequence[click.Parameter]) -> str:
    """``text`` with the options of a command for the library's arguments: ``--last`` for
    ``last=``, ``--lenient`` for ``strict=False``, ``--count 3`` for ``count=3``."""

    def option(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        named = [each for each in params if isinstance(each, click.Option) and each.name == name]
        if not named:
            return found[0]
        for each in named:
            if isinstance(each.flag_value, str):
                # One of several flags that fill the same argument.
                if value is not None and each.flag_value == value.strip("'"):
                    return _longest(each.opts)
            elif each.is_flag:
                return _longest((each.secondary_opts if value == "False" else []) or each.opts)
        if value is not None and isinstance(named[0].type, click.Choice):
            value = value.strip("'")
        elif value is not None and named[0].metavar != "GLOB":
            value = shlex.quote(value.strip("'"))
        return _longest(named[0].opts) + (f" {value}" if value is not None else "")

    return _ARGUMENT.sub(option, text)


def _possible(hint: str, params: Sequence[click.Parameter]) -> str:
    """A hint without its last alternative, if that takes arguments that a command lacks."""
    first, _, last = hint.rpartition(", or ")
    arguments = {found[1] for found in _ARGUMENT.finditer(last)}
    lacking = first and params and not arguments <= {each.name for each in params}
    return f"{first}." if lacking and ". " not in last else hint


def _longest(names: Sequence[str]) -> str:
    return max(names, key=len)


def _as_weight(path: str, params: Sequence[click.Parameter]) -> str | None:
    """What to do with a ``path`` that looks like a weight."""
    takes = any("--weights" in each.opts for each in params)
    is_one = re.fullmatch(r"\d*\.\d+", path) is not None
    return "Weights go behind --weights." if takes and is_one else None


def _nearest_path(path: str) -> str | None:
    """A question with the nearest name in the folder of a ``path`` that does not exist."""
    folder, name = os.path.split(path.rstrip("/"))
    try:
        names = names_in(folder or ".")
    except SwavgError:
        # Such as a store that wants other credentials.
        return None
    from swavg.formats.foreign import explain_name
    from swavg.formats.places import format_at

    # Of an object in a store that is listed and cannot be had, its own name is no help.
    paths = {each: os.path.join(folder, each) for each in names if each != name}
    names = [name for name, at in paths.items() if explain_name(at) is None or format_at(at)]
    # Suffixes are alike anyway, but where nothing else tells names apart.
    near = nearest(os.path.splitext(name)[0], (os.path.splitext(each)[0] for each in names))
    if near is None:
        return None
    alike = sorted(each for each in names if os.path.splitext(each)[0] == near)
    best = nearest(name, alike) or alike[0]
    return f"Did you mean '{os.path.join(folder, best)}'?"


def _what_is_there(path: str) -> str | None:
    """What is in the folder of a ``path`` that does not exist, or that it is not there either."""
    if is_url(path) or not path:
        return None
    folder, name = os.path.split(path.rstrip("/"))
    if folder and not os.path.isdir(folder):
        return _missing_folder(folder)
    there = [*_alike(folder, name, names_if_any(folder or "."))]
    where = f"In {folder} there" if folder else "Here"
    return f"{where} {'are' if len(there) > 1 else 'is'}: {some(there, 4)}." if there else None


def _alike(folder: str, name: str, names: Sequence[str]) -> Iterator[str]:
    """Checkpoints and folders; or files like ``name``, if that is of another kind."""
    from swavg.planning.targets import format_named

    suffix = os.path.splitext(name)[1]
    other = suffix and format_named(name) is None
    # Others could pass for lines of the hint.
    for each in filter(str.isprintable, names):
        if other:
            if each.endswith(suffix):
                yield each
        elif format_named(each) or (
            not each.startswith(".") and os.path.isdir(os.path.join(folder, each))
        ):
            yield each


def _missing_folder(folder: str) -> str:
    """Which folder on the way is not there, and what it was to be, perhaps."""
    above = os.path.dirname(folder)
    while above and not os.path.isdir(above):
        folder, above = above, os.path.dirname(above)
    near = nearest(os.path.basename(folder), names_if_any(above or "."))
    question = "" if near is None else f" Did you mean '{os.path.join(above, near)}'?"
    return f"There is no folder '{folder}'.{question}"
