"""A command of the user's that prints a number for a checkpoint."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from swavg.errors import RequestError

PLACE = "{}"
"""Where the path goes."""

_LAST_LINES = 5
_WAIT = 5.0
"""Seconds that a command has to end when it is asked to."""


@dataclass(frozen=True, slots=True)
class Command:
    """A score by the ``text`` of a command, which a shell runs with the path of a checkpoint for
    each ``{}``. Its standard error is ours.

    The score is the last line of its standard output, or with ``json_key`` a number in the JSON
    that it prints (all of it, or its last line): a name, or several with dots between. RequestError
    for a text without a place for the path.
    """

    text: str
    json_key: str | None = None

    def __post_init__(self) -> None:
        if PLACE not in self.text:
            raise RequestError(
                f"'{self.text}' does not say where the path of a checkpoint goes.",
                hint=f"Put {PLACE} there: '{self.text} {PLACE}'.",
            )

    def __call__(self, path: str) -> float:
        """The score of the checkpoint at ``path``. RequestError if the command fails, or prints
        none."""
        shown = self.text.replace(PLACE, shlex.quote(path))
        code, output = _run(shown)
        if code:
            ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise RequestError(
                f"'{shown}' {ended}.{_printed(output)}",
                hint="What was evaluated before is kept: the same call goes on from there.",
            )
        score = _last_number(output) if self.json_key is None else _by_key(output, self.json_key)
        if score is None:
            hint = f"Print JSON with a number at '{self.json_key}', as a whole or as the last line."
            if self.json_key is None:
                hint = (
                    "Print the number alone on the last line, or JSON with json_key='eval.loss' for"
                    " where it is."
                )
            raise RequestError(f"'{shown}' printed no score.{_printed(output)}", hint=hint)
        return score


def _run(command: str) -> tuple[int, str]:
    """Exit code and standard output. If this is interrupted, all that the command started ends."""
    # A group of its own: an interrupt of the terminal reaches us alone, and we end it.
    with subprocess.Popen(
        command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, process_group=0
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            _end(process)
            raise
    return process.returncode, output.decode(errors="replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_WAIT)
        os.killpg(process.pid, signal.SIGKILL)


def _printed(output: str) -> str:
    lines = output.rstrip().splitlines()[-_LAST_LINES:]
    return "\n  ".join([" It printed:", *lines]) if lines else " It printed nothing."


def _last_number(output: str) -> float | None:
    lines = output.split("\n")
    line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return _number(line)


def _number(text: str) -> float | None:
    try:
        # Python's own numbers may have underscores.
        return None if "_" in text else float(text)
    except ValueError:
        return None


def _by_key(output: str, key: str) -> float | None:
    for text in (output, (output.rstrip().splitlines() or [""])[-1]):
        with suppress(ValueError, RecursionError):
            return _found(json.loads(text), key)
    return None


def _found(value: object, key: str) -> float | None:
    """The number under ``key``, whose parts may have dots themselves."""
    if isinstance(value, Mapping):
        if key in value:
            found = value[key]
            plain = isinstance(found, int | float) and not isinstance(found, bool)
            return float(found) if plain else None
        parts = key.split(".")
        for count in range(1, len(parts)):
            name = ".".join(parts[:count])
            if name in value:
                deeper = _found(value[name], ".".join(parts[count:]))
                if deeper is not None:
                    return deeper
    return None
