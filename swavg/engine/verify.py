"""Whether an average is what its recipe says: made again from its inputs, and compared bit by
bit."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from swavg.engine.average import prepare
from swavg.engine.comparing import ComparingSink, compare_others
from swavg.engine.held import held_in
from swavg.engine.nearby import GIVE, find_inputs
from swavg.engine.origins import COMMON, Input, as_before, inputs_in, origins_of
from swavg.engine.outputs import write_deferred, write_fixed
from swavg.engine.recipe import as_text, recipe_from, recipe_of
from swavg.engine.report import Progress
from swavg.engine.resources import Resources
from swavg.engine.workers import start, tools_of
from swavg.errors import InputError, RequestError, SwavgError, some
from swavg.formats import recipe_in
from swavg.formats.parts import open_whole
from swavg.formats.tensors import Shared
from swavg.planning.plan import Plan
from swavg.planning.policy import Policy
from swavg.planning.row import Path, Row
from swavg.storage.paths import check_all, is_folder

SAMPLE = 64
"""Tasks that are made again of a large output, unless all are."""
_OTHER_RECIPE = (
    "the recipe that would be written now is another: that of another version or method, or of"
    " inputs of other names"
)
_NO_CHECKSUMS = (
    "its checksums and its directory, which follow from all of it, were not compared with those of"
    " a sample"
)


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

    ``inputs`` are those of its recipe, in that order, or of several the folder that they lie in,
    at any depth; none: they are looked for by their names, beside the output and where this process
    is. Of a large output :data:`SAMPLE` tasks are made,
    spread evenly, unless ``everything`` is. Raises MismatchError for the first difference,
    InputError where the output has no recipe or an input is gone or another, RequestError for
    another number of inputs.
    """
    path = os.fspath(output)
    resources = Resources() if resources is None else resources
    # Which of its state dicts it is about, the recipe says.
    recipe = recipe_from(recipe_in(path)) or recipe_of(path)
    names, numbers = recipe.get("inputs"), recipe.get("weights")
    if not isinstance(names, list) or not isinstance(numbers, list):
        raise InputError(path, "holds no recipe of swavg's: nothing says what it is made of")
    if "batch_norm" in recipe:
        raise InputError(
            path,
            "has batch-norm statistics that were recomputed, which is not done again here",
            hint="Verify the average for which they were recomputed.",
        )
    given = [os.fspath(each) for each in inputs]
    inside = given[0] if len(given) == 1 < len(names) and is_folder(given[0]) else None
    if inside or not given:
        given = find_inputs(path, recipe, _key(recipe), inside=inside)
    if len(given) != len(names):
        raise RequestError(
            f"{path} has {len(names)} inputs, and {len(given)} were given.", hint=GIVE
        )
    plan, notes = _as_told(path, given, recipe)
    sinks = [
        [ComparingSink(plan, row, number, path) for number in range(len(each.files))]
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
    if step == 1:
        write_deferred(plan, tally, sinks)
    elif any(file.layout.checksum for output in plan.outputs for file in output.files):
        notes.append(_NO_CHECKSUMS)
    for planned in plan.outputs:
        compare_others(planned, path)
    return Verified(path, tuple(given), tally.written, tally.planned, tuple(notes))


def _as_told(path: str, inputs: Sequence[str], recipe: Mapping[str, Any]) -> tuple[Plan, list[str]]:
    """The plan of the output that is there, and what is to be said of its recipe. InputError."""
    shared = Shared()
    try:
        plan = _planned(path, inputs, recipe, shared)
    except SwavgError:
        # Unless an input has changed, which explains it.
        _check_inputs(recipe, inputs, [_as_it_is(each, _key(recipe)) for each in inputs])
        raise
    _check_inputs(recipe, inputs, inputs_in(plan.recipes[0]))
    _check_held(plan, recipe, inputs)
    told = as_text(recipe)
    if told in map(as_text, plan.recipes):
        return plan, []
    if told in map(as_text, map(as_before, plan.recipes)):
        return _planned(path, inputs, recipe, shared, older=True), []
    if plan.parts is not None:
        names = [each.name for each in inputs_in(recipe)]
        raise InputError(
            inputs[0],
            "and the other inputs are of other names or another version than when the parts of"
            f" {path} were made, each of which says so otherwise",
            hint=f"Name them as they were: {some(names, 4)}.",
        )
    # Of the same bytes but for what it says of itself.
    return _planned(path, inputs, recipe, shared, recorded=told), [_OTHER_RECIPE]


def _key(recipe: Mapping[str, Any]) -> str | None:
    options = recipe.get("options")
    key = options.get("key") if isinstance(options, dict) else None
    return key if isinstance(key, str) else None


def _planned(
    path: str,
    inputs: Sequence[str],
    recipe: Mapping[str, Any],
    shared: Shared,
    *,
    recorded: str | None = None,
    older: bool = False,
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
        math.fsum(weights)
        alike = (_alike(value, getattr(Policy(), key)) for key, value in options.items())
        if not (all(alike) and isinstance(recipe.get("method"), str | None)):
            raise TypeError
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise InputError(path, "has a recipe that is none of swavg's") from None
    details = {key: value for key, value in recipe.items() if key not in COMMON}
    method = recipe.get("method")
    if method == "mean":
        # What follows from the weights is not taken from it.
        method = None
        details.pop("n", None)
    row = Row(
        weights,
        tuple(range(len(weights))),
        method,
        details,
        of_averages=True,
        copies=recipe.get("method") == "copy",
        recorded=recorded,
        older=older,
    )
    policy = Policy(**options)
    return prepare(inputs, [row], [path], policy, force=True, distances=False, shared=shared)


def _alike(value: object, default: object) -> bool:
    """Whether an option may have this value, going by what it has if it is not given."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and all(isinstance(each, str) for each in value)
    return default is None or type(value) is type(default)


def _as_it_is(path: str, key: str | None) -> Input:
    """What a recipe would tell of an input. InputError."""
    (origin,) = origins_of([open_whole(path, key=key, of_parts=True)], [path])
    return Input(path, None, origin.size, digits=origin.own.digits)


def _check_inputs(
    recipe: Mapping[str, Any], paths: Sequence[str], as_they_are: Sequence[Input]
) -> None:
    """InputError if an input is not what it was when the average was made."""
    for path, was, found in zip(paths, inputs_in(recipe), as_they_are, strict=True):
        if was.size not in (None, found.size):
            change = f"it has {found.size:,} bytes, and had {was.size:,}"
        elif was.digits not in (None, found.digits):
            change = f"its fingerprint is {found.digits}, and was {was.digits}"
        elif None not in (was.digest, found.digest) and was.digest != found.digest:
            change = "the digest of all its bytes is another"
        else:
            continue
        raise InputError(path, f"is not what the average was made of: {change}", hint=GIVE)


def _check_held(plan: Plan, recipe: Mapping[str, Any], inputs: Sequence[str]) -> None:
    """:func:`_check_inputs` for older recipes, which say of all inputs together what they stand
    for, or nothing. InputError."""
    before, now = ([entry.digits for entry in held_in(told)] for told in (recipe, plan.recipes[0]))
    if "holds" in recipe and before != now:
        problem = "and the other inputs are not what the average was made of"
        raise InputError(inputs[0], problem, hint=GIVE)
