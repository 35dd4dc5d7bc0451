"""Options that commands share: each is said once, over the field of the dataclass that it fills.

A table makes a decorator, and the command gets the filled dataclass.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click

Command = Callable[..., object]
Decorator = Callable[[Command], Command]
HEADINGS = (
    "Options", "Choosing checkpoints", "Evaluating", "Tensors", "Numbers and format", "Running",
)  # fmt: skip
"""Of the help, in their order."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option of the command line. Its values, default and whether it repeats are those of the
    field."""

    field: str
    """The field of the dataclass that it fills: the library's name for it."""
    names: str
    """As they are typed: ``-n --dry-run``, ``--strict/--lenient``."""
    help: str
    metavar: str | None = None
    type: click.ParamType[Any] | None = None
    """Where the field's type does not say it."""
    environment: str | None = None
    """The variable that gives its value where the option is not used."""

    @property
    def key(self) -> str:
        """What it is called in a job file."""
        return self.names.split()[-1].partition("/")[0].removeprefix("--").removeprefix("no-")


class Headed(click.Option):
    """An option that the help shows under a ``heading``."""

    def __init__(self, *args: Any, heading: str, **more: Any) -> None:
        super().__init__(*args, **more)
        self.heading = heading


class SectionedCommand(click.Command):
    """A command whose help shows its own options first, and those it shares under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                heading = param.heading if isinstance(param, Headed) else HEADINGS[0]
                sections[heading].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


def filled(
    argument: str, dataclass_type: type, sections: Mapping[str, Sequence[Option]]
) -> Decorator:
    """A decorator that adds the options of ``sections`` (by heading) to a command, which gets them
    as one ``argument``: an instance of the dataclass."""
    hints = get_type_hints(dataclass_type)
    defaults = {field.name: field.default for field in fields(dataclass_type)}
    options = [
        _as_click(option, heading, hints[option.field], defaults[option.field])
        for heading, members in sections.items()
        for option in members
    ]
    names = [option.field for members in sections.values() for option in members]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def called(**values: object) -> object:
            value = dataclass_type(**{name: values.pop(name) for name in names})
            return command(**{argument: value}, **values)

        decorated: Command = called
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def _as_click(option: Option, heading: str, hint: object, default: object) -> Decorator:
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
    multiple = get_origin(hint) is tuple
    kind: dict[str, object] = {"type": option.type}
    kind |= {"required": True} if default is MISSING else {"default": default}
    if multiple:
        kind = {"multiple": True}
    elif hint is bool:
        kind = {"is_flag": True, "default": default}
        if default and "/" not in option.names:
            kind = {"flag_value": False, "default": True}
    elif option.type is None:
        kind["type"] = click.Choice(get_args(hint)) if get_origin(hint) is Literal else hint
    return click.option(
        *option.names.split(),
        option.field,
        cls=Headed,
        heading=heading,
        help=option.help,
        metavar=option.metavar,
        envvar=option.environment,
        show_envvar=option.environment is not None,
        show_default=isinstance(default, (str, int)) and not isinstance(default, bool)
        and default != "" and "[default:" not in option.help,
        **kind,
    )  # fmt: skip
