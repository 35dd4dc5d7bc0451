"""``swavg watch``: an average that follows a training run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence

import click

from swavg.cli.errors import Job, with_options
from swavg.cli.options import SectionedCommand
from swavg.cli.signals import signals_kept
from swavg.errors import InputError, RequestError, SwavgError

_AVERAGING = ("average", "ema")
_DEEP = 2
"""Folders below the one that is given, in which checkpoints may grow."""

Seen = frozenset[tuple[str, int, int]]


@click.command(cls=SectionedCommand, context_settings={"ignore_unknown_options": True})
@click.option("--until", type=int, metavar="STEP", help="End once a checkpoint of this step is in.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=30,
    metavar="SECONDS",
    show_default=True,
    help="How often to look.",
)
@click.argument(
    "words",
    nargs=-1,
    required=True,
    type=click.UNPROCESSED,
    metavar="[average|ema] RUN [OPTION]...",
    shell_complete=click.Path().shell_complete,
)
@click.pass_context
def watch(ctx: click.Context, words: tuple[str, ...], until: int | None, interval: float) -> None:
    """Average the checkpoints of a run while it is trained.

    RUN and what follows are those of swavg average (or, after its name, of ema): --last 5, -o.
    Whenever there are new checkpoints, and the files in RUN have not changed for two looks, the
    output is made anew, and replaces the one before in one step; its path is printed each time.
    What is not finished is waited for. It ends with a signal, or with --until, and may be started
    again: what is up to date stays.

    \b
    swavg watch run/ --last 5 -o latest.safetensors --until 1000
    swavg watch --interval 5 --until 1000 ema run/ --decay 0.9 -o ema.safetensors
    """
    assert ctx.parent is not None
    group = ctx.parent.command
    assert isinstance(group, click.Group)
    named = words[0] in _AVERAGING
    name, rest = (words[0], words[1:]) if named else ("average", words)
    command = group.get_command(ctx, name)
    assert command is not None
    # Errors name its options.
    ctx.ensure_object(Job).command = command
    arguments = [*rest, "--if-stale"]
    with command.make_context(name, [*arguments], parent=ctx.parent) as inner:
        folders = [path for path in inner.params["checkpoints"] if os.path.isdir(path)]
    if not folders:
        raise click.UsageError("Give the folder of a run to watch.")
    from swavg.console.messages import no_repetition

    # What one round said, the next ones need not.
    ctx.with_resource(no_repetition())
    told = ""
    for _ in _settled(folders, interval):
        # Before: what comes meanwhile is not in.
        reached = until is not None and _newest(folders) >= until
        try:
            # Publishing ignores them.
            with signals_kept():
                _run(ctx.parent, command, arguments)
            told = ""
        except (InputError, RequestError) as error:
            # It may be unfinished, or there may be too few as yet.
            if str(error) != told:
                print(f"waiting: {with_options(str(error), command.params)}", file=sys.stderr)
            told = str(error)
        if reached and not told:
            return


def _run(group: click.Context, command: click.Command, words: Sequence[str]) -> None:
    with command.make_context(command.name, [*words], parent=group) as inner:
        command.invoke(inner)


def _settled(folders: Sequence[str], interval: float) -> Iterator[None]:
    """Each time that what is in the folders has changed, and then stayed for two looks."""
    done: Seen | None = None
    before = _seen(folders)
    while True:
        time.sleep(min(interval, 1.0) if done is None else interval)
        now = _seen(folders)
        if now == before != done:
            done = now
            yield
        before = now


def _seen(folders: Sequence[str]) -> Seen:
    """Paths, sizes and times of the files in the folders."""
    found = set()
    for folder in folders:
        base = folder.rstrip("/").count("/")
        for root, inner, files in os.walk(folder):
            if root.rstrip("/").count("/") - base >= _DEEP:
                inner.clear()
            for name in files:
                try:
                    facts = os.stat(os.path.join(root, name))
                except OSError:
                    continue
                found.add((os.path.join(root, name), facts.st_size, facts.st_mtime_ns))
    return frozenset(found)


def _newest(folders: Sequence[str]) -> int:
    """The last step that there is; -1 if none is known."""
    from swavg import series

    try:
        steps = series.discover(folders).steps
    except SwavgError:
        return -1
    return max((step for step in steps if step is not None), default=-1)
