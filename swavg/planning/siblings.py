"""Several state dicts in a file: which of them are averaged along, and what is said of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from swavg.errors import quoted
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.tensors import TableBuilder, TensorTable
from swavg.planning.match import numbered
from swavg.planning.plan import Plan
from swavg.planning.policy import Policy
from swavg.planning.row import Row
from swavg.planning.targets import Target

_TORCH = ("torch", "torch-legacy")
_LISTED = 8


@dataclass(frozen=True, eq=False, slots=True)
class WithSiblings:
    """Checkpoints in whose tables the state dicts stand that all of them have, and what to say."""

    checkpoints: Sequence[Checkpoint]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def told(self, plan: Plan) -> Plan:
        """The plan with notes and warnings, if its outputs have the structure of the inputs: of
        anything else it says itself what is left out."""
        if not any(file.layout.kept for output in plan.outputs for file in output.files):
            return plan
        # Where a format had to leave some, it says so.
        own = () if any(output.warnings for output in plan.outputs) else self.notes
        notes, warnings = (*own, *plan.notes), (*self.warnings, *plan.warnings)
        return replace(plan, notes=notes, warnings=warnings)


def join_siblings(
    checkpoints: Sequence[Checkpoint],
    shown: Sequence[str],
    rows: Sequence[Row],
    targets: Sequence[Target],
    policy: Policy,
    count: int = 1,
) -> WithSiblings:
    """The checkpoints with all state dicts that can be averaged along: those that every input has,
    with the same names and shapes, where the outputs keep the structure of a PyTorch file.

    Each input consists of ``count`` parts, one behind the other, and so does each output."""
    if count > 1:
        parts = [
            join_siblings(
                checkpoints[part::count],
                shown[part::count],
                [_of_part(row, count) for row in rows[part::count]],
                targets[part::count],
                policy,
            )
            for part in range(count)
        ]
        return WithSiblings(
            [parts[i % count].checkpoints[i // count] for i in range(len(checkpoints))],
            tuple(dict.fromkeys(note for part in parts for note in part.notes)),
            tuple(dict.fromkeys(warning for part in parts for warning in part.warnings)),
        )
    paths = dict.fromkeys(path for each in checkpoints for path in each.extras.siblings)
    doubtful = dict.fromkeys(path for each in checkpoints for path in each.extras.doubtful)
    templates = tuple(dict.fromkeys(row.members[-1] for row in rows))
    if (
        not (paths or doubtful or policy.key)
        or policy.weights_only
        or any(target.format != "torch" for target in targets)
        or any(checkpoints[template].format not in _TORCH for template in templates)
    ):
        return WithSiblings(checkpoints)
    last = shown[templates[0]] if len(templates) == 1 else "the last input"
    if policy.key:
        template = checkpoints[templates[-1]]
        return WithSiblings(
            checkpoints, (_note(template, [], last),), _left_for_lightning(template, last)
        )
    strict = policy.strict and not policy.mixed_dtypes
    joined: list[str] = []
    warnings = []
    for path in paths:
        why = _missing(path, checkpoints, shown) or _unlike(path, checkpoints, shown, strict=strict)
        if why is not None:
            there = all(path in checkpoints[template].extras.siblings for template in templates)
            place = f"but left as in {last}" if there else "and is in no output"
            warnings.append(f"'{path}' was not averaged, {place}: {why}")
        elif (why := _shared(path, joined, checkpoints, shown, templates)) is not None:
            warnings.append(f"'{path}' was not averaged by itself: {why}")
        else:
            joined.append(path)
    warnings += [
        f"'{path}' was left as in {last}: nothing tells whether its tensors are weights"
        f" (--key {path} averages it alone)"
        for path in doubtful
        if path not in paths
    ]
    if not joined:
        return WithSiblings(checkpoints, (), tuple(warnings))
    tables: dict[tuple[object, ...], TensorTable] = {}
    return WithSiblings(
        [_with(checkpoint, joined, tables) for checkpoint in checkpoints],
        (_note(checkpoints[templates[-1]], joined, last),),
        tuple(warnings),
    )


def with_common_siblings(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints with the tensors of all state dicts that each of them has."""
    paths = [
        path
        for path in checkpoints[0].extras.siblings
        if all(
            path in each.extras.siblings
            and each.tensors.keys().isdisjoint(each.extras.siblings[path])
            for each in checkpoints
        )
    ]
    return [_with(each, paths, {}) for each in checkpoints] if paths else list(checkpoints)


def _of_part(row: Row, count: int) -> Row:
    return replace(row, members=tuple(member // count for member in row.members))


def _missing(path: str, checkpoints: Sequence[Checkpoint], shown: Sequence[str]) -> str | None:
    for checkpoint, name in zip(checkpoints, shown, strict=True):
        if path not in checkpoint.extras.siblings:
            return f"{name} has no such state dict"
    return None


def _unlike(
    path: str, checkpoints: Sequence[Checkpoint], shown: Sequence[str], *, strict: bool
) -> str | None:
    """Why the tensors of a state dict do not match; ``strict``: dtypes count."""
    tables = [checkpoint.extras.siblings[path] for checkpoint in checkpoints]
    first = tables[0]
    if any(name in checkpoints[-1].tensors for name in tables[-1]):
        return f"its names are those of other tensors ('{next(iter(tables[-1]))}')"
    known = numbered(first)
    for table, name in zip(tables, shown, strict=True):
        if table.columns is first.columns:
            continue
        own = numbered(table)
        if own.keys() != known.keys():
            odd = next(iter(own.keys() ^ known.keys()))
            lacks = name if odd in known else shown[0]
            return f"{lacks} lacks its tensor '{odd}'"
        for spelled, number in known.items():
            one = first.columns.names[number]
            was, is_ = first.form_of(number)[:2], table.form_of(own[spelled])[:2]
            if was[1] != is_[1]:
                return f"'{one}' is {[*was[1]]} in {shown[0]} and {[*is_[1]]} in {name}"
            if was[0] is not is_[0] and (strict or was[0].kind != is_[0].kind):
                return f"'{one}' is {was[0]} in {shown[0]} and {is_[0]} in {name}"
    return None


def _shared(
    path: str,
    joined: Sequence[str],
    checkpoints: Sequence[Checkpoint],
    shown: Sequence[str],
    templates: Sequence[int],
) -> str | None:
    """Why a state dict cannot have an average of its own: a template has its tensors in the place
    of others, while elsewhere they are apart."""
    ties = [_ties(checkpoint, path, joined) for checkpoint in checkpoints]
    for template in templates:
        for other, name in zip(ties, shown, strict=True):
            if not ties[template] <= other:
                one, first = min(ties[template] - other)
                return (
                    f"in {shown[template]} '{one}' is the same tensor as '{first}', whose average"
                    f" it gets, and in {name} it is not"
                )
    return None


def _ties(checkpoint: Checkpoint, path: str, joined: Sequence[str]) -> set[tuple[str, str]]:
    """Canonical names of a state dict's tensors that lie where others do, with those of these."""
    siblings = checkpoint.extras.siblings
    places: dict[tuple[object, ...], str] = {}
    for table in (checkpoint.tensors, *(siblings[name] for name in joined)):
        for name, place in _places(table):
            places.setdefault(place, name)
    found = ((name, places.get(place)) for name, place in _places(siblings[path]))
    return {(name, first) for name, first in found if first is not None}


def _places(table: TensorTable) -> list[tuple[str, tuple[object, ...]]]:
    """Canonical names, and where each tensor lies in what form."""
    return [
        (name, (table.base + table.columns.offset[number], table.form_of(number)))
        for name, number in numbered(table).items()
    ]


def _with(
    checkpoint: Checkpoint, joined: Sequence[str], tables: dict[tuple[object, ...], TensorTable]
) -> Checkpoint:
    """The checkpoint with the tensors of these siblings; those of one run share their columns."""
    own, extras = checkpoint.tensors, checkpoint.extras
    parts = [own, *(extras.siblings[path] for path in joined)]
    key = tuple((id(part.columns), part.base - own.base) for part in parts)
    if key not in tables:
        builder = TableBuilder()
        for part in parts:
            columns = part.columns
            for name, form, offset in zip(columns.names, columns.form, columns.offset, strict=True):
                builder.add(name, columns.forms[form], part.base - own.base + offset)
        tables[key] = builder.build()
    table = TensorTable(tables[key].columns, own.base + tables[key].base)
    notes = tuple(note for note in checkpoint.notes if note not in extras.also)
    extras = replace(extras, joined=tuple(joined))
    return replace(checkpoint, tensors=table, notes=notes, extras=extras)


def _left_for_lightning(template: Checkpoint, last: str) -> tuple[str, ...]:
    """A warning where averages of a callback are asked for: Lightning loads what stays beside."""
    root = template.extras.root_key or ""
    if not root.startswith("callbacks.") or "state_dict" not in template.extras.others:
        return ()
    return (
        f"'state_dict', which Lightning loads into the model, has the training weights of {last}:"
        " for the averages alone --weights-only, or an OUT of another format (.safetensors)",
    )


def _note(template: Checkpoint, joined: Sequence[str], last: str) -> str:
    root = template.extras.root_key
    averaged = [f"'{root}'" if root else "the top level", *(f"'{path}'" for path in joined)]
    left = [
        name
        for name in template.extras.others
        if not any(path == name or path.startswith(name + ".") for path in joined)
    ]
    rest = quoted(left, _LISTED)
    return f"averaged: {', '.join(averaged)}" + (f"; left as in {last}: {rest}" if left else "")
