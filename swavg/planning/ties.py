"""Ties: several names of one tensor, declared by a file or found by its bytes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from swavg.errors import InputError
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.configuration import small_json
from swavg.formats.tensors import Tensor
from swavg.planning.same import same_elements
from swavg.storage.pool import Pool

_SAMPLE = 4096
"""Bytes from the middle of tensors that may be equal: where an embedding has no padding."""
_LONG = 1024
"""Elements from which on a vector is no mere norm or list of constants, whatever its name."""

_HEADS = ("lm_head.weight", "embed_out.weight", "proj_out.weight", "predictions.decoder.weight")
_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "shared.weight",
    "word_embeddings.weight",
    "embed_in.weight",
)

_ROLE = re.compile(
    r"(?i)emb|wte|head|shared|vocab|tok|lm_|proj_out|output|logits|generator|predictions|decoder"
)
"""Words in the names of what is tied in models: embeddings and heads."""

Numbers = Sequence[Mapping[str, int]]
"""For each checkpoint the number of each tensor, by canonical name."""


def declared_ties(
    checkpoints: Sequence[Checkpoint], numbers: Numbers, spell: Callable[[str], str]
) -> list[tuple[str, ...]]:
    """Groups of canonical names that are one tensor in every checkpoint that has them.

    A tie that one checkpoint declares (a .pt, by sharing storage) is looked up in the others;
    where a format cannot tell, the bytes are compared.
    """
    candidates: dict[tuple[str, ...], None] = {}
    taken: set[str] = set()
    for checkpoint in reversed(checkpoints):
        for group in checkpoint.ties:
            names = tuple(map(spell, group))
            if taken.isdisjoint(names):
                candidates[names] = None
                taken.update(names)
    if not candidates:
        return []
    with Pool() as pool:
        return [
            group
            for group in candidates
            if all(
                _is_tied(pool, checkpoint, own, group)
                for checkpoint, own in zip(checkpoints, numbers, strict=True)
            )
        ]


def found_ties(
    checkpoints: Sequence[Checkpoint], numbers: Numbers, declared: Sequence[tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Groups of canonical names that are one tensor, though it is not ``declared``.

    Looked for are names that some checkpoints leave out, as writers do with tied tensors: a
    partner must have the same bytes in every checkpoint that has both, and stand in one that
    lacks the name. What many tensors are without being tied does not count: integers, and but for
    embeddings and heads that are called so constants and short vectors.
    """
    distinct = list({id(own): own for own in numbers}.values())
    if all(own.keys() == distinct[0].keys() for own in distinct[1:]):
        return []
    held = Counter(name for own in distinct for name in own)
    missing = {name for name, count in held.items() if count < len(distinct)}
    missing.difference_update(*declared)
    several = {name for name, count in held.items() if count > 1}
    groups: list[tuple[str, ...]] = []
    taken: set[str] = set()
    with Pool() as pool:
        # A tie holds in all checkpoints: of those with the same names one will do.
        pairs = zip(checkpoints, numbers, strict=True)
        for checkpoint, own in {id(own): (each, own) for each, own in pairs}.values():
            for names in _alike(pool, checkpoint, own, missing, several):
                for name in names:
                    if name in missing and name not in taken:
                        others = [other for other in names if other not in taken]
                        group = _group(pool, name, others, checkpoints, numbers)
                        groups += [group] if group else []
                        taken.update(group)
    return groups


def broken_ties(checkpoints: Sequence[Checkpoint], shown: Sequence[str]) -> list[str]:
    """Warnings of heads that are not the embedding, though config.json says that they are tied."""
    warnings = []
    with Pool() as pool:
        for checkpoint, name in zip(checkpoints, shown, strict=True):
            config = checkpoint.extras.side_files.get("config.json")
            if config is None or not _says_tied(config):
                continue
            names = checkpoint.tensors.columns.names
            heads = [each for each in names if each.endswith(_HEADS)]
            embeddings = [each for each in names if each.endswith(_EMBEDDINGS)]
            if len(heads) != 1 or len(embeddings) != 1:
                continue
            one, other = map(checkpoint.tensors.__getitem__, (*heads, *embeddings))
            if one.spec.shape == other.spec.shape and (
                _sample(pool, checkpoint, one) != _sample(pool, checkpoint, other)
            ):
                warnings.append(
                    f"{name}: config.json says tie_word_embeddings, but '{heads[0]}' is not"
                    f" '{embeddings[0]}': each is averaged by itself, and transformers will"
                    " use the embedding for both"
                )
    return warnings


def _says_tied(path: str) -> bool:
    try:
        config = small_json(path)
    except InputError:
        return False
    return isinstance(config, dict) and config.get("tie_word_embeddings") is True


def _alike(
    pool: Pool,
    checkpoint: Checkpoint,
    own: Mapping[str, int],
    missing: set[str],
    several: set[str],
) -> list[list[str]]:
    """Names whose tensors look the same in a checkpoint, some ``missing`` elsewhere, others not."""
    columns = checkpoint.tensors.columns
    wanted = {columns.form[own[name]] for name in missing if name in own}
    wanted &= {columns.form[own[name]] for name in several if name in own}
    alike: dict[tuple[object, ...], list[str]] = {}
    for name, number in own.items():
        if columns.form[number] in wanted:
            tensor = checkpoint.tensors.at(number)
            sample = _sample(pool, checkpoint, tensor)
            known = name.endswith((*_HEADS, *_EMBEDDINGS))
            if sample is None or not (known or _varies(sample, tensor)):
                continue
            short = len(tensor.spec.shape) < 2 and tensor.spec.numel < _LONG
            # A short vector has a tie in BERT's heads: predictions.bias is decoder.bias.
            alias = name.replace(".decoder.", ".") if short and not known else ""
            key = tensor.spec.dtype.name, tensor.spec.shape, sample, alias
            alike.setdefault(key, []).append(name)
    return [
        names for names in alike.values() if not missing.isdisjoint(names) and _may_be_tied(names)
    ]


def _may_be_tied(names: Sequence[str]) -> bool:
    """Whether equal tensors of these names may be one: an embedding or a head is among them, and
    they are no copies in layers that differ by a number."""
    layers = {re.sub(r"\d+", "", name) for name in names}
    return len(layers) > 1 and any(map(_ROLE.search, names))


def _sample(pool: Pool, checkpoint: Checkpoint, tensor: Tensor) -> bytes | None:
    """Bytes from the middle of a tensor that may be tied; None of one that cannot be."""
    dtype, numel = tensor.spec.dtype, tensor.spec.numel
    if not dtype.floating or dtype.bits < 8 or numel < 2:
        return None
    count = min(numel, _SAMPLE // dtype.itemsize)
    start = (numel - count) // 2
    return bytes(checkpoint.read_range(tensor, start, start + count, pool))


def _varies(sample: bytes, tensor: Tensor) -> bool:
    size = tensor.spec.dtype.itemsize
    return sample != sample[:size] * (len(sample) // size)


def _group(
    pool: Pool,
    name: str,
    names: Sequence[str],
    checkpoints: Sequence[Checkpoint],
    numbers: Numbers,
) -> tuple[str, ...]:
    """Those of the ``names`` that are one tensor with ``name`` wherever both are; none if they
    are not one where it is missing, or are not there."""
    both = list(zip(checkpoints, numbers, strict=True))
    group = tuple(
        other for other in names if all(_is_tied(pool, *each, (name, other)) for each in both)
    )
    without = [(checkpoint, own) for checkpoint, own in both if name not in own]
    if not any(other in own for _, own in without for other in group):
        return ()
    return group if all(_is_tied(pool, *each, group) for each in without) else ()


def _is_tied(
    pool: Pool, checkpoint: Checkpoint, own: Mapping[str, int], names: Sequence[str]
) -> bool:
    tensors = [checkpoint.tensors.at(own[name]) for name in names if name in own]
    return len(tensors) < 2 or same_elements(pool, [(checkpoint, each) for each in tensors])
