"""``--card``: a page that says what an average is."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from swavg.errors import InputError

if TYPE_CHECKING:
    from swavg.planning.plan import Plan

_NAME = "README.md"


def card_of(path: str, recipe: Mapping[str, object], base_models: Iterable[str] = ()) -> str:
    """The page of the average at ``path``. InputError where its recipe says no inputs."""
    from swavg.cli.average import average
    from swavg.cli.run import command_line, options_of
    from swavg.cli.verify import verify
    from swavg.console.card import card
    from swavg.engine.origins import inputs_in
    from swavg.weights import is_uniform

    inputs = inputs_in(recipe)
    weights = [
        float(each.weight)
        for each in inputs
        if isinstance(each.weight, int | float) and abs(each.weight) <= sys.float_info.max
    ]
    if not inputs or len(weights) < len(inputs):
        raise InputError(path, "holds no recipe of swavg's: nothing says what it is made of")
    name = os.path.basename(path.rstrip("/"))
    names = [each.name for each in inputs]
    by_weights = {} if is_uniform(weights) else {"weights": weights, "raw-weights": True}
    made = command_line(average, names, {"output": name, **by_weights, **options_of(recipe)})
    page = card(name, recipe, [made, command_line(verify, [name], {})], [*base_models])
    # A file name need not be UTF-8; a page is.
    return page.encode(errors="backslashreplace").decode()


def with_cards(plan: Plan) -> Plan:
    """The plan, whose outputs have a page each. UsageError for one that is no folder in which a
    README.md may lie."""
    from swavg.engine.recipe import short_names

    outputs = list(plan.outputs)
    for first in range(0, len(outputs), plan.width):
        output, target = outputs[first], outputs[first].target
        if target.path is None or not (target.format == "folder" or target.part is not None):
            name = shlex.quote(target.path or "OUT")
            raise click.UsageError(
                f"--card writes {_NAME} into a folder as Hugging Face has it, and"
                f" {target.path or 'standard output'} is none. Once it is there:\n"
                f"swavg inspect {name} --card > {name}.md"
            )
        members = (plan.checkpoints[member].path for member in plan.rows[first].members)
        recipe = plan.recipes[first]
        if plan.parts is not None:
            roots = [plan.parts.roots[each // plan.width] for each in plan.rows[first].members]
            recipe = {**recipe, "inputs": [*short_names(roots)]}
        page = card_of(target.path, recipe, _repositories(members))
        sides = {name: path for name, path in output.side_files.items() if name != _NAME}
        small = {**output.small, _NAME: page.encode()}
        outputs[first] = replace(output, small=small, side_files=sides)
    return replace(plan, outputs=tuple(outputs))


def _repositories(paths: Iterable[str]) -> Iterable[str]:
    """The repositories of Hugging Face that hold these."""
    scheme = "hf://"
    found = (path.removeprefix(scheme) for path in paths if path.startswith(scheme))
    return dict.fromkeys("/".join(path.split("/")[:2]).partition("@")[0] for path in found)
