"""Opening ZeRO folders: the float32 masters, and from the model file what has none."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from swavg.errors import InputError, some
from swavg.formats.checkpoint import Checkpoint, Extras, Shared, TableBuilder, TensorTable
from swavg.formats.configuration import is_configuration
from swavg.formats.folder import add_tensor
from swavg.formats.torch.opened import open_archive
from swavg.formats.zero import RankFiles, find
from swavg.formats.zero.masters import frozen, masters, read_partition
from swavg.formats.zero.rank_file import SIXTEEN_BITS, RankFile, open_rank_file
from swavg.formats.zero.rows import Cut, Cuts
from swavg.storage.sources import Pool

_MODEL_STATES = "mp_rank_00_model_states.pt"
_MODULE = "module"
_EXPERTS = ("ds_autoep_layers", "autoep_layers")
_SERVED = (
    _MODULE, "buffer_names", "param_shapes", "frozen_param_shapes", "frozen_param_fragments",
    "shared_params",
)  # fmt: skip
"""What of the model file is in the tensors."""
_LISTED = 4


def open_zero(path: str, shared: Shared | None = None) -> Checkpoint:
    """Open the folder at ``path``, or the one below it that ``latest`` names. InputError."""
    names = find(path)
    if names is None:
        raise InputError(path, "has no files of ZeRO's ranks")
    _check(path, names)
    folder, ranks = names.folder, len(names.optimizers)
    with Pool() as pool:
        partitions = [
            read_partition(*open_rank_file(pool, os.path.join(folder, name), 1 + rank))
            for rank, name in names.optimizers
        ]
        stage = partitions[0].stage
        prefix = "zero_pp_rank_{}_" if stage == 3 else ""
        place = os.path.join(folder, prefix + _MODEL_STATES)
        model, top = open_rank_file(pool, place.format(0), 0)
        if any(top.get(key) for key in _EXPERTS):
            raise model.error("its experts are spread in other ways than the rest")
        groups = [
            model.shapes("'param_shapes'", each)
            for each in model.list_of("'param_shapes'", top.get("param_shapes"))
        ]
        cuts = masters(partitions, groups)
        shapes = model.shapes("'frozen_param_shapes'", top.get("frozen_param_shapes") or {})
        others: list[RankFile] = []

        def model_files() -> Iterator[tuple[RankFile, Mapping[str, object]]]:
            yield model, top
            for rank in range(1, ranks):
                file, content = open_rank_file(pool, place.format(rank), ranks + rank)
                others.append(file)
                yield file, content

        if stage == 3 and shapes:
            cuts |= frozen(model_files(), shapes, ranks)
    shared_params = model.dict_of("'shared_params'", top.get("shared_params") or {})
    ties = {alias: name for alias, name in shared_params.items() if isinstance(name, str)}
    buffers = model.list_of("'buffer_names'", top.get("buffer_names") or [])
    weights = open_archive(model.path, _MODULE, shared)
    table, taken = _table(weights, cuts, ties, None if stage < 3 else buffers)
    files = [model, *(each.file for each in partitions), *others]
    left = [key for key, value in top.items() if value is not None and key not in _SERVED]
    extras = replace(_extras(path, folder, weights, files), others=("optimizer_state_dict", *left))
    sources, note = tuple(file.source for file in files), _note(weights, cuts, taken, ranks)
    return Checkpoint(path, "zero", sources, table, notes=(note,), extras=extras)


def _check(path: str, names: RankFiles) -> None:
    """InputError unless the folder is one model's, with one file of each rank."""
    if names.universal:
        raise InputError(
            path,
            "is a universal checkpoint of DeepSpeed's, which swavg does not read",
            hint="Give the folder of ranks' files that ds_to_universal.py made it of.",
        )
    if names.beside:
        models = [os.path.basename(names.folder), *names.beside]
        raise InputError(
            path,
            f"holds several models: {', '.join(models)}",
            hint=f"Give the folder of one, such as {names.folder}.",
        )
    ranks = [rank for rank, _ in names.optimizers]
    if ranks != [*range(len(ranks))]:
        raise InputError(
            names.folder,
            f"has files of ranks {some([str(rank) for rank in ranks], 8)}, not one of each",
            hint=f"Are some of an earlier training, or not yet copied? {SIXTEEN_BITS}",
        )


def _table(
    weights: Checkpoint,
    cuts: Mapping[str, Cut],
    ties: Mapping[str, str],
    buffers: Collection[object] | None,
) -> tuple[TensorTable, list[str]]:
    """The masters, of the model file what has none, and the names of the latter.

    ``ties`` map further names of parameters to those that have masters. Where the parameters in the
    model file are spread over ranks, ``buffers`` are those in it that are not. InputError for a
    parameter that no file has.
    """
    builder = TableBuilder()
    apart: dict[int, Cut] = {}
    taken: list[str] = []
    count = 0
    for name in dict.fromkeys((*weights.tensors, *cuts, *ties)):
        number = weights.tensors.index.get(name)
        if (cut := cuts.get(name, cuts.get(ties.get(name, name)))) is not None:
            boxes = list(islice(cut.boxes(), 2))
            if len(boxes) > 1:
                apart[count] = replace(cut, spec=replace(cut.spec, name=name))
            # Of several boxes the first tells it from others.
            source, offset = (boxes[0].source, boxes[0].offset) if boxes else (0, 0)
            builder.add(name, (cut.spec.dtype, cut.spec.shape, None), offset, source)
        elif number is not None:
            empty = weights.tensors.form_of(number)[1] == (0,)
            if empty and buffers is not None and name not in buffers:
                raise InputError(
                    weights.path, f"'{name}' is spread over ranks, and is not among the masters"
                )
            add_tensor(builder, weights, number, 0)
            taken.append(name)
        else:
            continue
        count += 1
    table = builder.build()
    return TensorTable(replace(table.columns, others=Cuts(apart)), table.base), taken


def _extras(path: str, folder: str, weights: Checkpoint, files: Sequence[RankFile]) -> Extras:
    """What the model file says besides, and what lies beside the folder."""
    scalars = dict(weights.extras.scalars)
    if "global_steps" in scalars:
        scalars.setdefault("global_step", scalars["global_steps"])
    # A trainer puts its configuration above the folder of the ranks.
    above = () if os.path.samefile(path, folder) else sorted(os.listdir(path))
    return replace(
        weights.extras,
        scalars=scalars,
        records={file.number: file.archive for file in files},
        side_files={name: os.path.join(path, name) for name in above if is_configuration(name)},
        template=None,
    )


def _note(weights: Checkpoint, cuts: Mapping[str, Cut], taken: Sequence[str], ranks: int) -> str:
    """What was taken of the files."""
    dtypes = " and ".join(dict.fromkeys(cut.spec.dtype.name for cut in cuts.values()))
    of_ranks = f"took the {dtypes} weights of {len(cuts)} tensors from the files of {ranks} ranks"
    if not taken:
        return of_ranks
    shown = some([f"'{name}'" for name in taken], _LISTED)
    return f"{of_ranks}; {shown} from {os.path.basename(weights.path)}, as they have no masters"
