"""What the tensors of a model are called in checkpoints of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from swavg.errors import MismatchError
from swavg.formats.checkpoint import Checkpoint
from swavg.planning.match import canonical
from swavg.planning.rename import Rule, renamed_with_model
from swavg.training.places import own_tensors
from swavg.training.wrapped import unwrap


def known_as(
    model: nn.Module, checkpoints: Sequence[Checkpoint], rules: Sequence[Rule], *, must: bool = True
) -> tuple[dict[str, str], list[Checkpoint]]:
    """By name of each tensor of a model the one to look for in ``checkpoints``, and these, all by
    ``rules`` as :func:`swavg.planning.rename.renamed_with_model` follows them.

    transformers 5 saves many models under other names than their modules have. Raises
    MismatchError for tensors that it saves merged or split.
    """
    own = own_tensors(model)
    saved = _saved_by_transformers(model, own)
    given = dict.fromkeys((*own, *(other for other in saved.values() if other is not None)))
    names, opened = renamed_with_model(tuple(given), checkpoints, rules, must=must)
    found = dict(zip(given, names, strict=True))
    there: set[str] = set()
    if saved:
        columns = {id(each.tensors.columns): each.tensors.columns for each in opened}
        there = {canonical(name) for each in columns.values() for name in each.names}
    for name, other in saved.items():
        if canonical(found[name]) in there:
            continue
        if other is None:
            raise MismatchError(
                f"'{name}' of the model is no tensor of its own in checkpoints that transformers"
                " saves: it is merged or split there.",
                hint="Average the folders with swavg.average, and load the result with"
                " from_pretrained.",
            )
        found[name] = found[other]
    return {name: found[name] for name in own}, opened


def _saved_by_transformers(
    model: nn.Module, tensors: Mapping[str, Tensor]
) -> dict[str, str | None]:
    """The names under which ``save_pretrained`` would write what has another one in the model;
    None for a tensor that is merged or split on the way."""
    inner = unwrap(model)
    if not hasattr(inner, "save_pretrained"):
        return {}
    try:
        from transformers import PreTrainedModel
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        # Before transformers 5 names are saved as they are.
        return {}
    if not isinstance(inner, PreTrainedModel):
        return {}
    bare = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    name_of = {id(tensor): name for name, tensor in bare.items()}
    saved = revert_weight_conversion(inner, dict(bare))
    others = {name_of.get(id(tensor)): other for other, tensor in saved.items()}
    found = ((name, others.get(name)) for name in bare)
    return {name: other for name, other in found if name != other}
