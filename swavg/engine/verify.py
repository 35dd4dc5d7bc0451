"""Whether an average is what its recipe says: made again from its inputs, and compared bit by
bit."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from swavg.engine.average import prepare
from swavg.engine.held import held_in
from swavg.engine.outputs import write_fixed
from swavg.engine.recipe import as_text, recipe_of
from swavg.engine.report import Progress
from swavg.engine.resources import Resources
from swavg.engine.workers import start, tools_of
from swavg.errors import InputError, MismatchError, RequestError, some
from swavg.formats.composite import as_composite
from swavg.formats.parts import open_parts
from swavg.planning.plan import Plan
from swavg.planning.policy import Policy
from swavg.planning.row import Path, Row
from swavg.storage.paths import check_all, exists, find_file, is_folder, names_if_any
from swavg.storage.pool import Pool
from swavg.storage.sinks import Buffer
from swavg.storage.sources import Source

SAMPLE = 64
"""Tasks that are made again of a large output, unless all are."""
_TOLD = ("method", "inputs", "weights", "holds", "options", "version")
"""What of a recipe is no detail of its method."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What was proven of an output: ``proven`` bytes of ``total``, from these ``inputs``."""

    output: str
    inputs: tuple[str, ...]
    proven: int
    total: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Plain values for ``json.dumps``."""
        return {
            "output": self.output,
            "inputs": [{"path": path} for path in self.inputs],
            "proven": self.proven,
            "total": self.total,
            "notes": [*self.notes],
        }


def verify(
    output: Path,
    inputs: Sequence[Path] = (),
    *,
    everything: bool = False,
    resources: Resources | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Verified:
    """Make an average again from its inputs, and compare the bytes with those that are there.

    ``inputs`` are those of its recipe, in that order; none: they are looked for by their names,
    beside the output and where this process is. Of a large output :data:`SAMPLE` tasks are made,
    spread evenly, unless ``everything`` is. Raises MismatchError for the first difference,
    InputError where the output has no recipe or an input is gone or another, RequestError for
    another number of inputs.
    """
    path = os.fspath(output)
    resources = Resources() if resources is None else resources
    recipe = recipe_of(path)
    names, numbers = recipe.get("inputs"), recipe.get("weights")
    if not isinstance(names, list) or not isinstance(numbers, list):
        raise InputError(path, "holds no recipe of swavg's: nothing says what it is made of")
    given = [os.fspath(each) for each in inputs] or _all_found(path, [*map(str, names)])
    if len(given) != len(names):
        raise RequestError(
            f"{path} has {len(names)} inputs, and {len(given)} were given.", hint=_GIVE
        )
    plan = _planned(path, given, recipe)
    _check_held(plan, recipe, given)
    told = as_text(recipe)
    same = told in map(as_text, plan.recipes)
    if not same and plan.parts is not None:
        raise InputError(
            given[0],
            "and the other inputs are of other names or another version than when the parts of"
            f" {path} were made, each of which says so otherwise",
            hint=f"Name them as they were: {some([*map(str, names)], 4)}.",
        )
    if not same:
        # Of the same bytes but for what it says of itself.
        plan = _planned(path, given, recipe, told)
    sinks = [
        [_Comparing(plan, row, number, path) for number in range(len(each.files))]
        for row, each in enumerate(plan.outputs)
    ]
    tally, executor, chosen = start(plan, resources)
    tasks = plan.tasks()
    step = 1 if everything else max(1, -(-len(tasks) // SAMPLE))
    numbers_of = tasks[::step]
    make = tools_of(plan, chosen, resources)
    for result in executor(plan, numbers_of, sinks, make):
        tally.add(result)
        if on_progress is not None:
            on_progress(Progress(tally.read, tally.total // step, 0.0))
    check_all(plan.sources)
    write_fixed(plan, sinks)
    note = (
        "the recipe that would be written now is another: that of another version or method, or of"
        " inputs of other names"
    )
    return Verified(path, tuple(given), tally.written, tally.planned, () if same else (note,))


_GIVE = "Give the inputs, or their URLs, behind the output, in the order of its recipe."


def _planned(
    path: str, inputs: Sequence[str], recipe: Mapping[str, Any], recorded: str | None = None
) -> Plan:
    """The average as its recipe says, with the output where it is."""
    known = {field.name for field in fields(Policy)}
    told = recipe.get("options", {})
    try:
        options: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in told.items()
            if key in known
        }
        weights = tuple(float(weight) for weight in recipe["weights"])
    except (AttributeError, TypeError, ValueError):
        raise InputError(path, "has a recipe that is none of swavg's") from None
    details = {key: value for key, value in recipe.items() if key not in _TOLD}
    row = Row(
        weights,
        tuple(range(len(weights))),
        recipe.get("method"),
        details,
        of_averages=True,
        copies=recipe.get("method") == "copy",
        recorded=recorded,
    )
    policy = Policy(**options)
    return prepare(inputs, [row], [path], policy, force=True, distances=False)


def _check_held(plan: Plan, recipe: Mapping[str, Any], inputs: Sequence[str]) -> None:
    """InputError if an input is not what it was when the average was made."""
    before, now = ([entry.digits for entry in held_in(told)] for told in (recipe, plan.recipes[0]))
    if before == now:
        return
    for number, (was, found) in enumerate(zip(before, now, strict=False)):
        if was != found and len(before) == len(now) == len(inputs):
            raise InputError(
                inputs[number],
                f"is not what the average was made of: its fingerprint is {found}, and was {was}",
                hint=_GIVE,
            )
    problem = "and the other inputs are not what the average was made of"
    raise InputError(inputs[0], problem, hint=_GIVE)


def _all_found(output: str, names: Sequence[str]) -> list[str]:
    """The inputs by the names in the recipe. InputError for one that is nowhere near."""
    found = [_found(output, name) for name in names]
    composite = as_composite(output)
    if composite is not None:
        # The recipe is that of its first part.
        for _ in filter(None, next(iter(open_parts(composite).parts)).split("/")):
            found = [os.path.dirname(each) for each in found]
    return found


def _found(output: str, name: str) -> str:
    """An input by the name in the recipe. InputError if it is nowhere near."""
    here = os.path.dirname(output.rstrip("/"))
    above = os.path.dirname(os.path.abspath(output.rstrip("/")))
    for folder in (here, "", os.path.dirname(above)):
        if exists(found := os.path.join(folder, name)):
            return found
        for inner in names_if_any(folder or "."):
            below = os.path.join(folder, inner)
            if is_folder(below) and exists(found := os.path.join(below, name)):
                return found
    raise InputError(
        name,
        f"an input of {output}, was not found near it",
        hint=_GIVE,
        absent=True,
    )


class _Comparing:
    """A file of an output that is there: what would be written is compared."""

    forks = True
    fds = ()

    def __init__(self, plan: Plan, row: int, number: int, path: str) -> None:
        self._plan, self._row, self._number, self._path = plan, row, number, path
        name = plan.outputs[row].files[number].layout.name
        try:
            self._source: Source = find_file(os.path.join(path, name) if name else path)
        except InputError:
            problem = "is laid out otherwise than its recipe says; was it converted?"
            raise InputError(path, problem) from None
        self._pool = Pool()

    def pwrite(self, offset: int, data: Buffer) -> None:
        """MismatchError if other bytes are there."""
        there = self._pool.read(self._source, offset, len(data))
        if there == data:
            return
        first = next(at for at, byte in enumerate(data) if there[at] != byte)
        file = self._plan.outputs[self._row].files[self._number]
        region = bisect_right(file.offsets, offset + first) - 1
        name = self._plan.name(self._row, file.entries[region])
        where = f"'{name}'" if name else "what is no tensor"
        raise MismatchError(
            f"{self._source.name}: {where} is not what its recipe says: byte"
            f" {offset + first - file.offsets[region]:,} of it is {there[first]}, and"
            f" {data[first]} was to be there."
        )

    def sync(self) -> None:
        """Nothing is written."""

    def fail(self, error: BaseException) -> None:
        """Nobody waits."""
