"""Whether outputs are there already: made by the same recipe of the same inputs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

from swavg.engine.origins import as_before
from swavg.engine.recipe import as_text
from swavg.formats import recipe_in
from swavg.planning.plan import Plan
from swavg.storage.paths import changed, exists
from swavg.storage.stores import is_url


def up_to_date(plan: Plan) -> bool:
    """Whether all outputs have their recipes, which tell their inputs by fingerprints, and no file
    of an input was changed after they were made."""
    newest = max(_changed(plan), default=0)
    for first in range(0, len(plan.outputs), plan.width):
        path = plan.outputs[first].target.path
        recipes = plan.recipes[first : first + plan.width]
        texts = {as_text(form) for each in recipes for form in (each, as_before(each))}
        if path is None or not exists(path) or recipe_in(path) not in texts:
            return False
        made = changed(path)
        # A store tells the second.
        if made is not None and made < (newest - newest % 10**9 if is_url(path) else newest):
            return False
    return True


def _changed(plan: Plan) -> Iterator[int]:
    """When each file was changed that outputs are made of, in nanoseconds."""
    for source in plan.sources:
        if isinstance(source.version, int):
            yield source.version
    for output in plan.outputs:
        for path in output.side_files.values():
            if os.path.exists(path):
                yield os.stat(path).st_mtime_ns


def replacing_averages(plan: Plan) -> Plan:
    """The plan, whose outputs replace what is there if that is an average that swavg wrote."""
    paths = {output.target.path for output in plan.outputs} - {None}
    if not all(recipe_in(path) for path in paths if path is not None and exists(path)):
        return plan
    outputs = (replace(each, target=replace(each.target, force=True)) for each in plan.outputs)
    return replace(plan, outputs=tuple(outputs))
