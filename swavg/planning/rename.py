"""Names as a user wants them: without a prefix, or with parts replaced."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from swavg.errors import RequestError, did_you_mean
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.tensors import Columns, TensorTable
from swavg.planning.match import canonical
from swavg.planning.prefixes import leading

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One change of names, as the ``text`` of an ``argument`` says it. RequestError for a text
    that says none."""

    argument: str
    text: str

    def __post_init__(self) -> None:
        before, equals, _ = self.text.partition("=")
        if self.argument == "rename" and not (equals and before.strip(".")):
            raise RequestError(f"is '{self.text}', not 'A=B'.", argument="rename")
        if not self.text:
            raise RequestError("is empty.", argument=self.argument)

    def change(self) -> Callable[[str], str]:
        """What makes one name another."""
        if self.argument == "strip_prefix":
            # Of 'model' and 'model_ema.a' nothing is meant.
            prefix = self.text + "." if self.text[-1].isalnum() else self.text
            return lambda name: _stripped(name, prefix)
        before, _, after = self.text.partition("=")
        if re.fullmatch(r"[^\w.]+", before):
            # What separates parts: '/' in names of JAX and NumPy.
            return lambda name: name.replace(before, after) or name
        before, after = before.strip("."), after.strip(".")
        part = re.compile(rf"(?<=\.){re.escape(before)}\.")
        text = after + "." if after else ""
        return lambda name: part.sub(lambda _: text, f".{name}.")[1:-1] or name


def rules(strip_prefix: Iterable[str] = (), rename: Iterable[str] = ()) -> list[Rule]:
    """Prefixes go first; all are followed in turn."""
    prefixes = [strip_prefix] if isinstance(strip_prefix, str) else strip_prefix
    return [
        *(Rule("strip_prefix", prefix) for prefix in prefixes),
        *(Rule("rename", text) for text in rename),
    ]


def _stripped(name: str, prefix: str) -> str:
    # Wrappers in front of it do not count.
    for text in (name, canonical(name)):
        if text.startswith(prefix) and text != prefix:
            return text[len(prefix) :]
    return name


def _changed(
    tables: Sequence[Names], fixed: Sequence[bool], rules: Sequence[Rule], *, must: bool
) -> list[Names]:
    """The names of several checkpoints and a model by these rules, but for the ``fixed`` ones.

    A prefix stays in a table that fits the others better with it: 'model.' may be of the model
    where others have 'model.model.'. Raises RequestError for names that would be one, and, if
    each rule ``must`` change something, for one that does not.
    """
    for rule in rules:
        changed = [
            names if stays else tuple(map(rule.change(), names))
            for names, stays in zip(tables, fixed, strict=True)
        ]
        if must and changed == list(tables):
            raise _unused(rule, {name for names in tables for name in names})
        spelled = [set(map(canonical, names)) for names in changed]
        kept = list(changed)
        for at, (old, new) in enumerate(zip(tables, changed, strict=True)):
            if old == new:
                continue
            own, others = spelled[at], [*spelled[:at], *spelled[at + 1 :]]
            if rule.argument == "strip_prefix" and _fits_better(old, own, others):
                kept[at] = old
            else:
                _check_distinct(rule, old, new)
        tables = kept
    return list(tables)


def _fits_better(old: Names, new: set[str], others: Sequence[set[str]]) -> bool:
    """Whether ``old`` names have more in common with another table than ``new`` ones."""
    kept = set(map(canonical, old))
    return max((len(kept & each) for each in others), default=0) > max(
        (len(new & each) for each in others), default=0
    )


def _check_distinct(rule: Rule, old: Names, new: Names) -> None:
    if len(set(new)) == len(new):
        return
    first: dict[str, str] = {}
    for before, after in zip(old, new, strict=True):
        if first.setdefault(after, before) != before:
            raise RequestError(
                f"'{rule.text}' makes '{first[after]}' and '{before}' one name, '{after}'.",
                argument=rule.argument,
            )


def _unused(rule: Rule, names: Collection[str]) -> RequestError:
    text = rule.text.partition("=")[0]
    if rule.argument == "rename":
        hint = did_you_mean(text, {part for name in names for part in name.split(".")})
        return RequestError(f"'{text}' is no part of any name.", argument="rename", hint=hint)
    common = leading(names, 1)
    hint = did_you_mean(text, common) or did_you_mean(text + ".", common)
    if hint is None and common:
        hint = f"Prefixes are {', '.join(map(repr, common[:3]))}."
    return RequestError(f"'{text}' begins no name of any input.", argument=rule.argument, hint=hint)


def renamed(checkpoints: Sequence[Checkpoint], rules: Sequence[Rule]) -> list[Checkpoint]:
    """The checkpoints with other names; those of one run share their tables still.

    Raises RequestError for a rule that changes nothing, or makes two names of one input one.
    """
    return renamed_with_model((), checkpoints, rules)[1]


def renamed_with_model(
    names: Names, checkpoints: Sequence[Checkpoint], rules: Sequence[Rule], *, must: bool = True
) -> tuple[Names, list[Checkpoint]]:
    """:func:`renamed`, and the ``names`` of a model by the same rules. Checkpoints whose names
    were changed before stay as they are; else each rule ``must`` change something."""
    if not rules:
        return names, list(checkpoints)
    columns = {id(each.tensors.columns): each.tensors.columns for each in checkpoints}
    before = {id(each.tensors.columns) for each in checkpoints if each.renamed}
    own, *tables = _changed(
        [names, *(each.names for each in columns.values())],
        [False, *(key in before for key in columns)],
        rules,
        must=must and not before,
    )
    made = {
        key: there if changed == there.names else _with_names(there, changed)
        for (key, there), changed in zip(columns.items(), tables, strict=True)
    }
    return own, [_renamed(each, made[id(each.tensors.columns)]) for each in checkpoints]


def _with_names(columns: Columns, names: Names) -> Columns:
    others = {
        number: replace(tensor, spec=replace(tensor.spec, name=names[number]))
        for number, tensor in columns.others.items()
    }
    return replace(columns, names=names, others=others)


def _renamed(checkpoint: Checkpoint, columns: Columns) -> Checkpoint:
    before = checkpoint.tensors
    if columns is before.columns:
        return checkpoint
    name_of = dict(zip(before.columns.names, columns.names, strict=True))
    shards = {
        shard: tuple(map(name_of.__getitem__, names))
        for shard, names in checkpoint.extras.shards.items()
    }
    return replace(
        checkpoint,
        tensors=TensorTable(columns, before.base),
        extras=replace(checkpoint.extras, shards=shards),
        renamed=True,
    )
