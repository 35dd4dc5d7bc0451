"""Options that commands share: each is said once, over the field of the dataclass that it fills.

A table makes a decorator, and the command gets the filled dataclass.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    daily: bool = False
    """Whether -h shows it: what is used every day."""

    @property
    def key(self) -> str:
        """What it is called in a job file."""
        return self.names.split()[-1].partition("/")[0].removeprefix("--").removeprefix("no-")


class Headed(click.Option):
    """An option that --help shows under a ``heading``, and -h only if it is used ``daily``."""

    def __init__(
        self, *args: Any, heading: str = HEADINGS[0], daily: bool = False, **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self.heading = heading
        self.daily = daily


class _UncutWords(click.HelpFormatter):
    """Lines break at spaces alone: never within ``--per-step``."""

    def write_text(self, text: str) -> None:
        super().write_text(text.replace("-", _UNBROKEN))

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        uncut = [(typed, told.replace("-", _UNBROKEN)) for typed, told in rows]
        super().write_dl(uncut, col_max, col_spacing)

    def getvalue(self) -> str:
        return super().getvalue().replace(_UNBROKEN, "-")


class HelpContext(click.Context):
    """A context whose help has no word cut."""

    formatter_class = _UncutWords


class SectionedCommand(click.Command):
    """A command whose --help shows its own options first, and those it shares under headings; and
    whose -h shows those of every day, on one screen."""

    context_class = HelpContext

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        return ["--help"]

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        *own, whole = super().get_params(ctx)
        return [*own, _BRIEFLY, whole]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in HEADINGS}
        for option, record in self._records(ctx):
            sections[_heading(option)].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def _records(self, ctx: click.Context) -> Iterator[tuple[click.Option, tuple[str, str]]]:
        """The options that are shown, each as it is typed and what it does."""
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if record is not None:
                assert isinstance(param, click.Option)
                # That a count is positive goes without saying.
                yield param, (record[0], _RANGE.sub("", record[1]))

    def brief_help(self, ctx: click.Context) -> str:
        """What -h shows: what the command does, examples, and the options of every day."""
        formatter = ctx.make_formatter()
        self.format_usage(ctx, formatter)
        summary, *paragraphs = inspect.cleandoc(self.help or "").split("\n\n")
        examples = next((text for text in paragraphs if text.startswith("\b\n")), "\b\n")
        with formatter.indentation():
            for text in (summary, _first_lines(examples)):
                formatter.write_paragraph()
                formatter.write_text(text)
        records = sorted(self._records(ctx), key=lambda record: HEADINGS.index(_heading(record[0])))
        shown = [
            (fewer_choices(typed), told)
            for option, (typed, told) in records
            if (option.daily if isinstance(option, Headed) else _is_own(option))
        ]
        if shown:
            room = formatter.width - max(len(typed) for typed, _ in shown) - 4
            with formatter.section(HEADINGS[0]):
                formatter.write_dl([(typed, _first_sentence(told, room)) for typed, told in shown])
        count = len(records) - 2
        every = f"all {count} options, and more" if len(shown) < count else "more"
        formatter.write_paragraph()
        formatter.write_text(f"{ctx.command_path} --help shows {every}.")
        return formatter.getvalue().rstrip("\n")


_UNBROKEN = "\N{NON-BREAKING HYPHEN}"
_RANGE = re.compile(r"  \[x>=[^\];]*\]|; x>=[^\];]*(?=\])")
_EXAMPLES = 3
_WIDEST = 27
"""Of an option with its values, in -h."""


def _show_briefly(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        assert isinstance(ctx.command, SectionedCommand)
        click.echo(ctx.command.brief_help(ctx), color=ctx.color)
        ctx.exit()


_BRIEFLY = click.Option(
    ["-h"], is_flag=True, is_eager=True, expose_value=False, callback=_show_briefly,
    help="Show the options of every day and exit.",
)  # fmt: skip


def _heading(option: click.Option) -> str:
    return option.heading if isinstance(option, Headed) else HEADINGS[0]


def _is_own(option: click.Option) -> bool:
    return option is not _BRIEFLY and "--help" not in option.opts


def _first_lines(examples: str) -> str:
    """The first examples; one may go on behind a backslash."""
    head, *lines = examples.splitlines()
    last = _EXAMPLES
    while last < len(lines) and lines[last - 1].endswith("\\"):
        last += 1
    return "\n".join([head, *lines[:last]])


def _first_sentence(told: str, room: int) -> str:
    """What an option does, in a sentence; and its default, if there is ``room`` for it."""
    sentence = re.split(r"(?<=\.) ", told, maxsplit=1)[0]
    behind = re.search(r" +\[(default: |required)[^\]]*\]$", told)
    if behind is None or len(f"{sentence}{behind[0]}") > room:
        return sentence
    return sentence + behind[0]


def fewer_choices(typed: str) -> str:
    """An option as it is typed, with so many of its choices as fit."""
    end = "|...]" if typed.endswith("]") else "|..."
    while len(typed) > _WIDEST and "|" in typed.removesuffix(end):
        typed = typed.removesuffix(end).rpartition("|")[0] + end
    return typed


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
        daily=option.daily,
        help=option.help,
        metavar=option.metavar,
        envvar=option.environment,
        show_envvar=option.environment is not None,
        show_default=isinstance(default, (str, int)) and not isinstance(default, bool)
        and default != "" and "[default:" not in option.help,
        **kind,
    )  # fmt: skip
