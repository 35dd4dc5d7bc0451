"""Values of options and arguments: weights, sizes, paths."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Sequence
from typing import ClassVar

import click

from swavg.cli.options import Headed, SectionedCommand

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf)"
_NUMBERS = re.compile(rf"\s*(?:{_NUMBER})(?:[,\s]+(?:{_NUMBER}))*[,\s]*", re.IGNORECASE)
# The flag for NUL-separated paths, not a weight.
_NOT_WEIGHTS = ("-0",)
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}

COUNT = click.IntRange(min=1)
COUNT.name = "integer"
KEY_HELP = (
    "Where the state dict lies in a .pt, such as model.state_dict, or which of several models in"
    " another format is meant (ema_params). [default: found]"
)
KEY = click.option("--key", cls=Headed, metavar="PATH", help=KEY_HELP)
STRIP_HELP = (
    "Take this off the names that begin with it, such as model. in those of Lightning. Can be"
    " repeated."
)
STRIP = click.option("--strip-prefix", cls=Headed, metavar="PREFIX", multiple=True, help=STRIP_HELP)
NULL = click.option(
    "-0", "--null", cls=Headed, is_flag=True, help="Paths on stdin are separated by NUL."
)


class WeightsCommand(SectionedCommand):
    """A command whose ``--weights`` takes as many numbers as follow it.

    Click's options have a fixed count of values, so the numbers behind ``--weights`` (or ``-w``)
    are joined into one value before Click sees them. A path that is a number is written ``./10``.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, join_weights(args))


def join_weights(args: Sequence[str]) -> list[str]:
    """``--weights 1 2 x`` becomes ``--weights=1,2 x``; nothing behind ``--`` is touched."""
    joined: list[str] = []
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*joined, word, *rest]
        found = re.fullmatch(r"(?:--weights|-w)(?:=(.*))?|-w(.+)", word, re.DOTALL)
        if found is None:
            joined.append(word)
            continue
        values = [value for value in found.groups() if value is not None]
        while rest and _NUMBERS.fullmatch(rest[0]) and rest[0] not in _NOT_WEIGHTS:
            values.append(rest.pop(0))
        if not values:
            if rest[:1] == ["-0"]:
                raise click.UsageError("-0 stands for --null here; write the weight as 0.")
            other = f", not '{rest[0]}'" if rest else ""
            raise click.UsageError(f"--weights needs numbers{other}.")
        joined.append(f"--weights={','.join(value.strip(',') for value in values)}")
    return joined


class Weights(click.ParamType):  # type: ignore[type-arg]
    """Numbers separated by commas."""

    name = "weights"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        try:
            return tuple(float(part) for part in str(value).replace(",", " ").split())
        except ValueError:
            self.fail(f"'{value}' is no list of numbers.", param, ctx)


class Size(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes: ``5GB`` (decimal), ``64MiB`` (binary), ``1000``."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", str(value).lower())
        if found is None or (found[3] and not found[2]):
            self.fail(f"'{value}' is no size; write 64MiB, 5GB or a number of bytes.", param, ctx)
        return int(float(found[1]) * (1024 if found[3] else 1000) ** _UNITS[found[2]])


class NameOrPath(click.Path):
    """One of some names, or else the path of a file."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names


class FormatName(click.ParamType):  # type: ignore[type-arg]
    """The name of a format that is written, in any case, or what else it is called."""

    name = "format"
    names = ("safetensors", "torch", "npz", "hdf5", "keras", "dcp", "tensorflow", "folder")
    """The help shows these; which of them there are, the library says."""
    _aliases: ClassVar = {"tf": "tensorflow", "numpy": "npz", "pytorch": "torch", "h5": "hdf5"}

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        name = str(value).lower()
        return self._aliases.get(name, name)


def read_paths(arguments: Sequence[str], *, null: bool) -> list[str]:
    """The paths, with those read from standard input in the place of ``-``."""
    paths: list[str] = []
    for argument in arguments:
        if argument != "-":
            paths.append(argument)
            continue
        if arguments.count("-") > 1:
            raise click.UsageError("'-' can stand only once among the paths.")
        raw = sys.stdin.buffer.read()
        parts = raw.split(b"\0") if null else [line.rstrip(b"\r") for line in raw.split(b"\n")]
        named = [os.fsdecode(part) for part in parts if part]
        if not named:
            raise click.UsageError("standard input named no paths.")
        paths += named
    return paths
