"""The tensors of a model and those of checkpoints, side by side, before anything is touched."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from swavg.dtypes import BY_NAME, DType
from swavg.errors import Difference, MismatchError, RequestError
from swavg.formats.tensors import Form, TensorTable
from swavg.planning.match import spelling
from swavg.planning.prefixes import behind_prefix
from swavg.training.wrapped import check_values, is_expanded

_NAMED = 4


class Match(NamedTuple):
    """A tensor of a model, by name, and what it is made of: the number of a tensor in each of the
    checkpoints' tables."""

    name: str
    numbers: tuple[int, ...]


def match_model(
    tensors: Mapping[str, Tensor],
    tables: Sequence[TensorTable],
    table_of: Sequence[int],
    shown: Sequence[str],
    *,
    strict: bool,
    known_as: Mapping[str, str],
) -> tuple[list[Match], tuple[str, ...]]:
    """What each tensor of a model is made of, and the names of those that cannot be made.

    ``known_as`` has the name by which each is looked for.
    ``tables`` and ``table_of`` are those of :func:`swavg.planning.match.distinct_tables`. A tied
    tensor is matched once, by any of its names. Raises MismatchError if ``strict`` and a
    checkpoint lacks one, or has it in another shape or of another kind; and if none can be made.
    Raises RequestError for a tensor without shape, or without memory of its own.
    """
    groups: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        _check(name, tensor)
        groups.setdefault(id(tensor), []).append(name)
    spell = spelling(list(known_as.values()), *(table.columns.names for table in tables))
    spelled = [
        {spell(name): number for number, name in enumerate(table.columns.names)} for table in tables
    ]
    matches: list[Match] = []
    differences: list[Difference] = []
    kept: list[str] = []
    for names in groups.values():
        # The last of its names is the one that load_state_dict would leave in place.
        own = [spell(known_as[name]) for name in reversed(names)]
        numbers = tuple(
            next((place[name] for name in own if name in place), -1) for place in spelled
        )
        forms = [
            None if numbers[place] < 0 else tables[place].form_of(numbers[place])
            for place in table_of
        ]
        difference = _difference(names[0], tensors[names[0]], forms, shown)
        if difference is None:
            matches.append(Match(names[0], numbers))
        else:
            differences.append(difference)
            kept += names
    if differences and (strict or not matches):
        raise _behind_prefix(known_as.values(), spell, spelled, table_of, shown) or _mismatch(
            differences, len(groups)
        )
    order = {name: place for place, name in enumerate(tensors)}
    return matches, tuple(sorted(kept, key=order.__getitem__))


def _check(name: str, tensor: Tensor) -> None:
    check_values(name, tensor, "Give the model memory first: model.to_empty(device='cpu').")
    if is_expanded(tensor):
        raise RequestError(
            f"'{name}' is expanded: several of its elements share one place in memory.",
            hint="Give it memory of its own, with contiguous().",
        )


def model_dtype(tensor: Tensor) -> DType | None:
    """The dtype of a model's tensor; None for one that no checkpoint holds as such."""
    return BY_NAME.get(str(tensor.dtype).removeprefix("torch."))


def _difference(
    name: str, tensor: Tensor, forms: Sequence[Form | None], shown: Sequence[str]
) -> Difference | None:
    """What keeps ``tensor`` from being made of tensors of these forms (None: missing), or None."""

    def differs(what: str, own: str, others: Sequence[str]) -> Difference:
        return Difference(name, what, (("the model", own), *zip(shown, others, strict=True)))

    present = [form for form in forms if form is not None]
    if len(present) < len(forms):
        others = ["missing" if form is None else "present" for form in forms]
        return differs("missing", "present", others)
    shape = tuple(tensor.shape)
    if any(form[1] != shape for form in present):
        return differs("shape", str(list(shape)), [str(list(form[1])) for form in present])
    dtype = model_dtype(tensor)
    if dtype is None or any(_group(form[0]) != _group(dtype) for form in present):
        own = str(tensor.dtype).removeprefix("torch.")
        return differs("dtype", own, [form[0].name for form in present])
    return None


def _group(dtype: DType) -> str:
    """Dtypes of one group can be made of each other. Floats narrower than a byte are codes."""
    if dtype.bits < 8:
        return dtype.name
    return "integer" if dtype.kind == "bool" else dtype.kind


def _behind_prefix(
    names: Iterable[str],
    spell: Callable[[str], str],
    spelled: Sequence[Collection[str]],
    table_of: Sequence[int],
    shown: Sequence[str],
) -> MismatchError | None:
    """The error if it is a prefix that keeps the names of model and checkpoints apart."""
    firsts = [shown[table_of.index(place)] for place in range(len(spelled))]
    found = behind_prefix([*spelled, list(map(spell, names))], [*firsts, "the model"])
    return None if found is None else MismatchError(f"{found.fact}.", hint=found.hint)


def _mismatch(differences: Sequence[Difference], count: int) -> MismatchError:
    listed = [_said(difference) for difference in differences[:_NAMED]]
    if len(differences) > _NAMED:
        listed.append(f"and {len(differences) - _NAMED} more")
    if any(_of_peft(each) for each in differences):
        hint = (
            "PEFT's adapters, which have other names, are averaged by swavg.average(paths,"
            " output='adapter'), for PeftModel.from_pretrained(base, 'adapter')."
        )
    elif len(differences) < count:
        hint = "With strict=False they keep the model's own values."
    else:
        hint = "Are they of this model? For a .pt file, key= chooses the state dict."
    return MismatchError(
        f"{len(differences)} of the model's {count} tensors cannot be made of the checkpoints: "
        + "; ".join(listed)
        + ".",
        differences=differences,
        hint=hint,
    )


def _of_peft(difference: Difference) -> bool:
    name = difference.name
    return difference.what == "missing" and name.startswith("base_model.") and ".lora_" in name


def _said(difference: Difference) -> str:
    (_, own), *others = difference.facts
    source, fact = next((source, fact) for source, fact in others if fact != own)
    more = sum(fact != own for _, fact in others) - 1
    also = f" and {more} more" if more else ""
    if difference.what == "missing":
        return f"'{difference.name}' is missing in {source}{also}"
    return f"'{difference.name}' is {own} in the model, {fact} in {source}{also}"
