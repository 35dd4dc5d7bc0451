"""``swavg run``: a command that was written down, with the same words as its options."""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from swavg.cli.errors import Job
from swavg.cli.options import SectionedCommand
from swavg.cli.values import NameOrPath, Weights
from swavg.errors import InputError, did_you_mean
from swavg.storage.paths import is_absolute, read_file

_COMMAND = "command"
_MOST = 1 << 24
_VARIABLE = re.compile(r"\$\{(\w+)\}")


@click.command("run", cls=SectionedCommand, context_settings={"ignore_unknown_options": True})
@click.argument("job", metavar="JOB", type=click.Path())
@click.argument("more", nargs=-1, type=click.UNPROCESSED, metavar="[OPTION]...")
@click.pass_context
def run(ctx: click.Context, job: str, more: tuple[str, ...]) -> object:
    """Run what a file says: a command and its options, as --save-job writes them.

    JOB is TOML with the words of the command line: command = "average", checkpoints = ["run"],
    last = 5, output = "avg.safetensors". Paths are relative to the file, and ${NAME} is a variable
    of the environment. Options behind it are added. A report that --json printed is a job too: the
    same inputs with the same weights.

    \b
    swavg average run/ --last 5 -o avg.safetensors --save-job average.toml
    swavg run job.toml
    """
    assert ctx.parent is not None
    group = ctx.parent.command
    assert isinstance(group, click.Group)
    name, values = _read(job)
    names = [each for each in group.list_commands(ctx) if each != "run"]
    if name not in names:
        near = did_you_mean(name, names) or ""
        raise click.UsageError(f"{job}: there is no command '{name}'. {near}".rstrip())
    command = group.get_command(ctx, name)
    assert command is not None
    found = ctx.ensure_object(Job)
    found.command = command
    options, paths = _arguments(job, command, values)
    found.options = options
    with command.make_context(name, [*options, *more, "--", *paths], parent=ctx.parent) as inner:
        return command.invoke(inner)


def _read(path: str) -> tuple[str, dict[str, object]]:
    """The name of the command, and the values by their keys."""
    text = read_file(path, _MOST).decode(errors="replace")
    try:
        values = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{path} is no job: {error}.") from None
    if str(values.get("schema", "")).startswith("swavg.report/"):
        try:
            values = _of_report(values)
        except (AttributeError, KeyError, TypeError):
            raise click.UsageError(f"{path} is no report of an average.") from None
    name = values.pop(_COMMAND, None)
    if not isinstance(name, str):
        raise click.UsageError(f'{path} says no command: command = "average", say.')
    return name, values


def _of_report(report: Mapping[str, Any]) -> dict[str, object]:
    """The average that a report tells of, with its weights. KeyError, TypeError or AttributeError
    for another object."""
    inputs, recipe = report["inputs"], report["recipe"]
    return {
        _COMMAND: "average",
        "checkpoints": [each["path"] for each in inputs],
        "weights": [each["weight"] for each in inputs],
        "raw-weights": True,
        "output": report["output"],
        **options_of(recipe),
    }


def options_of(recipe: Mapping[str, object]) -> dict[str, object]:
    """The options of a recipe by their keys. UsageError for one that this version lacks."""
    from swavg.cli.averaging import policy_options

    keys = {option.field: option.key for option in policy_options()}
    options = recipe.get("options")
    told = options if isinstance(options, dict) else {}
    for field in told:
        if field not in keys:
            raise click.UsageError(f"Its recipe has the option {field!r}, which is not known here.")
    return {keys[field]: value for field, value in told.items()}


def command_line(command: click.Command, paths: Sequence[str], values: Mapping[str, object]) -> str:
    """What is typed for a command with these paths, and the values of options by their keys."""
    params = {key: param for param in command.params for key in keys_of(param)}
    words = ["swavg", str(command.name), *paths]
    for key, value in values.items():
        words += _option("a recipe", key, params[key], value, _plain("a recipe", key, value))
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    """A word of a command in one line, without terminal codes."""
    if word.isprintable():
        return shlex.quote(word)
    # Surrogates that stand for no byte are in no name.
    text = re.sub("[\ud800-\udc7f\udd00-\udfff]", "?", word)
    text = text.encode("utf-8", "surrogateescape").decode("latin-1")
    shown = (c if " " <= c <= "~" and c not in "'\\" else f"\\x{ord(c):02x}" for c in text)
    return f"$'{''.join(shown)}'"


def _arguments(
    job: str, command: click.Command, values: Mapping[str, object]
) -> tuple[list[str], list[str]]:
    """The options and the paths that the command gets."""
    folder = os.path.dirname(job)
    params = {key: param for param in command.params for key in keys_of(param)}
    options: list[str] = []
    places: dict[str, list[str]] = {}
    for key, value in values.items():
        if key not in params:
            near = did_you_mean(key, params) or ""
            raise click.UsageError(f"{job}: {command.name} takes no '{key}'. {near}".rstrip())
        param = params[key]
        texts = [
            _in(folder, text) if _is_path(param, text) else text for text in _texts(job, key, value)
        ]
        if isinstance(param, click.Argument):
            places[key] = texts
        else:
            options += _option(job, key, param, value, texts)
    paths = [
        text
        for param in command.params
        if isinstance(param, click.Argument)
        for text in places.get(str(param.name), [])
    ]
    return options, paths


def keys_of(param: click.Parameter) -> Iterator[str]:
    """What a parameter is called in a job."""
    if isinstance(param, click.Argument):
        yield str(param.name)
        return
    for name in param.opts:
        if name.startswith("--"):
            yield name.removeprefix("--")


def _option(
    job: str, key: str, param: click.Parameter, value: object, texts: Sequence[str]
) -> list[str]:
    assert isinstance(param, click.Option)
    if param.is_flag:
        if not isinstance(value, bool):
            raise click.UsageError(f"{job}: '{key}' is true or false.")
        if value:
            return [f"--{key}"]
        return [param.secondary_opts[-1]] if param.secondary_opts else []
    if isinstance(param.type, Weights):
        return [f"--{key}={','.join(texts)}"]
    if param.nargs > 1:
        return [f"--{key}", *texts]
    if len(texts) != 1 and not param.multiple:
        raise click.UsageError(f"{job}: '{key}' is one value, not {len(texts)}.")
    return [f"--{key}={text}" for text in texts]


def _texts(job: str, key: str, value: object) -> list[str]:
    """A value, or each of a list, as it is typed, with the variables in it."""
    return [
        _VARIABLE.sub(lambda name: _variable(job, name[1]), text)
        for text in _plain(job, key, value)
    ]


def _plain(job: str, key: str, value: object) -> list[str]:
    found = []
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, bool | dict | list) and not isinstance(value, bool):
            raise click.UsageError(f"{job}: '{key}' is no list of texts and numbers.")
        text = repr(each) if isinstance(each, float) else str(each)
        if "\0" in text:
            raise click.UsageError(f"{job}: a NUL character is in '{key}'.")
        found.append(text)
    return found


def _variable(job: str, name: str) -> str:
    if name not in os.environ:
        raise click.UsageError(f"{job}: the variable {name} is not set.")
    return os.environ[name]


def _is_path(param: click.Parameter, text: str) -> bool:
    names = param.type.names if isinstance(param.type, NameOrPath) else ()
    return isinstance(param.type, click.Path) and text not in names


def _in(folder: str, path: str) -> str:
    return path if path == "-" or is_absolute(path) else os.path.join(folder, path)


def save(ctx: click.Context, path: str) -> None:
    """Write the command of ``ctx`` down. UsageError, or InputError where a file is there."""
    folder = os.path.dirname(os.path.abspath(path))
    lines = [f"{_COMMAND} = {json.dumps(ctx.info_name)}"]
    for param in ctx.command.params:
        value: Any = ctx.params.get(str(param.name))
        given = ctx.get_parameter_source(str(param.name)) in (
            ParameterSource.COMMANDLINE,
            ParameterSource.ENVIRONMENT,
        )
        if not given or param.name in ("save_job", "dry_run") or value in ((), None):
            continue
        if isinstance(param, click.Option) and param.is_flag and not param.secondary_opts:
            # It may be one of several flags that fill the same parameter.
            chosen = param.flag_value if isinstance(param.flag_value, str | bool) else True
            if value != chosen:
                continue
            value = True
        if isinstance(param.type, click.Path):
            several = isinstance(value, tuple)
            paths = [
                _from(folder, each) if _is_path(param, each) else each
                for each in (value if several else [value])
            ]
            value = paths if several else paths[0]
        if isinstance(param.type, Weights):
            value = [number for group in value for number in group]
        lines.append(f"{[*keys_of(param)][-1]} = {_toml(value)}")
    try:
        data = "\n".join([*lines, ""]).encode()
    except UnicodeEncodeError:
        raise click.UsageError("A job is UTF-8, and a name in this call is not.") from None
    try:
        with open(path, "xb") as file:
            file.write(data)
    except FileExistsError:
        raise click.UsageError(f"{path} exists already: --save-job writes a new file.") from None
    except OSError as error:
        raise InputError(path, f"cannot be written: {error.strerror}") from None


def _from(folder: str, path: str) -> str:
    """A path as it is from a folder."""
    if path == "-":
        raise click.UsageError("A job cannot read paths from standard input, or write there.")
    if is_absolute(path):
        return path
    slash = "/" if path.endswith("/") else ""
    return os.path.relpath(path, folder) + slash


def _toml(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str) and (found := _VARIABLE.search(value)):
        raise click.UsageError(
            f"In a job {found[0]} would be a variable of the environment, and it is part of a name."
        )
    # What TOML escapes as JSON does, but for one.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
