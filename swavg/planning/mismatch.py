"""The refusal of inputs that differ: all differences, and a way out."""

from __future__ import annotations

from collections.abc import Sequence

from swavg.dtypes import BY_NAME, DType
from swavg.errors import Difference, MismatchError

NOT_OF_ONE_MODEL = "Are they of the same model? For a .pt file, key= chooses the state dict."


def mismatch(
    differences: Sequence[Difference], inputs: Sequence[str], *, related: bool = True
) -> MismatchError:
    """The error of ``inputs`` that are called so; ``related``: some of their tensors do match."""
    first = differences[0]
    *others, (source, fact) = first.facts
    other_source, other_fact = next(
        ((s, f) for s, f in others if f != fact), (inputs[0], first.facts[0][1])
    )
    message = (
        f"{source}: '{first.name}' is {fact}; {other_source} has "
        f"{'it' if other_fact == 'present' else other_fact}."
        if fact != "present"
        else f"{other_source}: '{first.name}' is {other_fact}; {source} has it."
    )
    if len(differences) > 1:
        message += f" {len(differences)} tensors differ."
    if all(map(_only_floats_differ, differences)):
        hint = "Average them with mixed_dtypes=True."
    elif not related and len(differences) > 1 and all(d.what == "missing" for d in differences):
        hint = NOT_OF_ONE_MODEL
    elif len(differences) > 1:
        hint = "Use strict=False, or leave what differs out with exclude=."
    else:
        glob = first.name
        hint = f"Leave it out with exclude='{glob}' or use strict=False."
    return MismatchError(message, differences=differences, hint=hint)


def _only_floats_differ(difference: Difference) -> bool:
    dtypes = [BY_NAME[fact] for _, fact in difference.facts] if difference.what == "dtype" else []
    return bool(dtypes) and all(may_mix(dtype, dtypes[0]) for dtype in dtypes)


def may_mix(one: DType, other: DType) -> bool:
    """Whether elements of two dtypes can be summed; floats below 8 bits are codes."""
    return one.kind == other.kind and one.floating and min(one.bits, other.bits) >= 8
