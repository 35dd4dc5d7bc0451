"""Opening ZeRO folders: the float32 masters, and from the model file what has none."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from operator import attrgetter

from swavg.errors import InputError, quoted, some
from swavg.formats.checkpoint import Checkpoint, Extras
from swavg.formats.configuration import is_configuration
from swavg.formats.tensors import Made, Shared, TableBuilder, TensorTable
from swavg.formats.torch.opened import open_archive
from swavg.formats.zero import RankFiles, find
from swavg.formats.zero.masters import frozen, masters, read_partition
from swavg.formats.zero.rank_file import SIXTEEN_BITS, RankFile, open_rank_file
from swavg.formats.zero.rows import Cut
from swavg.storage.paths import names_in, status
from swavg.storage.pool import Pool

_MODEL_STATES = "mp_rank_00_model_states.pt"
_MODULE = "module"
_EXPERTS = ("ds_autoep_layers", "autoep_layers")
_SERVED = (
    _MODULE, "buffer_names", "param_shapes", "frozen_param_shapes", "frozen_param_fragments",
    "shared_params",
)  # fmt: skip
"""What of the model file is in the tensors."""
_LISTED = 4


@dataclass(frozen=True, eq=False, slots=True)
class _Ranks:
    """What the ranks' files say: the ``model`` file and all ``files``, in the order of the sources,
    ``cuts`` by name, and further names of them (``ties``). ``whole`` are the names in a model file
    whose parameters are spread that are not (None: none is), ``left`` what else it holds."""

    model: RankFile
    files: Sequence[RankFile]
    cuts: Mapping[str, Cut]
    ties: Mapping[str, str]
    whole: Set[str] | None
    left: Sequence[str]


def open_zero(path: str, key: str | None = None, shared: Shared | None = None) -> Checkpoint:
    """Open the folder at ``path``, or the one below it that ``latest`` names. InputError.

    ``key`` means nothing here.
    """
    names = find(path)
    if names is None:
        raise InputError(path, "has no files of ZeRO's ranks")
    _check(path, names)
    with Pool() as pool:
        ranks = _read(pool, names)
    weights = open_archive(ranks.model.path, _MODULE, shared)
    table, taken = _table(weights, ranks)
    sources = tuple(file.source for file in ranks.files)
    note = _note(weights, ranks.cuts, taken, len(names.optimizers))
    extras = _extras(path, names.folder, weights, ranks)
    return Checkpoint(path, "zero", sources, table, notes=(note,), extras=extras)


def _read(pool: Pool, names: RankFiles) -> _Ranks:
    """What all files say. InputError."""
    count = len(names.optimizers)
    partitions = [
        read_partition(*open_rank_file(pool, os.path.join(names.folder, name), 1 + rank))
        for rank, name in names.optimizers
    ]
    spread = partitions[0].stage == 3

    def open_model(rank: int, number: int) -> tuple[RankFile, Mapping[str, object]]:
        name = f"zero_pp_rank_{rank}_{_MODEL_STATES}" if spread else _MODEL_STATES
        return open_rank_file(pool, os.path.join(names.folder, name), number)

    model, top = open_model(0, 0)
    if any(top.get(key) for key in _EXPERTS):
        raise model.error("its experts are spread in other ways than the rest")
    groups = model.list_of("'param_shapes'", top.get("param_shapes"))
    cuts = masters(partitions, [model.shapes("'param_shapes'", each) for each in groups])
    files = [model, *(each.file for each in partitions)]

    def model_files() -> Iterator[tuple[RankFile, Mapping[str, object]]]:
        yield model, top
        for rank in range(1, count):
            file, content = open_model(rank, len(files))
            files.append(file)
            yield file, content

    shapes = model.shapes("'frozen_param_shapes'", top.get("frozen_param_shapes") or {})
    if spread and shapes:
        cuts |= frozen(model_files(), shapes, count)
    shared = model.dict_of("'shared_params'", top.get("shared_params") or {})
    buffers = model.list_of("'buffer_names'", top.get("buffer_names") or [])
    return _Ranks(
        model,
        files,
        cuts,
        {alias: name for alias, name in shared.items() if isinstance(name, str)},
        {name for name in buffers if isinstance(name, str)} if spread else None,
        [key for key, value in top.items() if value is not None and key not in _SERVED],
    )


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


def _table(weights: Checkpoint, ranks: _Ranks) -> tuple[TensorTable, list[str]]:
    """The masters, of the model file what has none, and the names of the latter. InputError for a
    parameter that no file has."""
    cuts, ties = ranks.cuts, ranks.ties
    builder = TableBuilder()
    apart: dict[int, Cut] = {}
    taken: list[str] = []
    for name in dict.fromkeys((*weights.tensors, *cuts, *ties)):
        number = weights.tensors.index.get(name)
        if (cut := cuts.get(name, cuts.get(ties.get(name, name)))) is not None:
            boxes = list(islice(cut.boxes(), 2))
            if len(boxes) > 1:
                apart[len(builder)] = replace(cut, spec=replace(cut.spec, name=name))
            # Of several boxes the first tells it from others.
            source, offset = (boxes[0].source, boxes[0].offset) if boxes else (0, 0)
            builder.add(name, (cut.spec.dtype, cut.spec.shape, None), offset, source)
        elif number is not None:
            empty = weights.tensors.form_of(number)[1] == (0,)
            if empty and ranks.whole is not None and name not in ranks.whole:
                raise InputError(
                    weights.path, f"'{name}' is spread over ranks, and is not among the masters"
                )
            builder.add_of(weights.tensors, number, 0)
            taken.append(name)
    return builder.build(others=Made(apart, attrgetter("tensor"))), taken


def _extras(path: str, folder: str, weights: Checkpoint, ranks: _Ranks) -> Extras:
    """What the model file says besides, and what lies beside the folder."""
    scalars = dict(weights.extras.scalars)
    if "global_steps" in scalars:
        scalars.setdefault("global_step", scalars["global_steps"])
    # A trainer puts its configuration above the folder of the ranks.
    above = () if status(path) == status(folder) else names_in(path)
    return replace(
        weights.extras,
        scalars=scalars,
        records={file.number: file.archive for file in ranks.files},
        others=("optimizer_state_dict", *ranks.left),
        side_files={name: os.path.join(path, name) for name in above if is_configuration(name)},
        template=None,
        masters=True,
    )


def _note(weights: Checkpoint, cuts: Mapping[str, Cut], taken: Sequence[str], ranks: int) -> str:
    """What was taken of the files."""
    dtypes = " and ".join(dict.fromkeys(cut.spec.dtype.name for cut in cuts.values()))
    of_ranks = f"took the {dtypes} weights of {len(cuts)} tensors from the files of {ranks} ranks"
    if not taken:
        return of_ranks
    shown = quoted(taken, _LISTED)
    return f"{of_ranks}; {shown} from {os.path.basename(weights.path)}, as they have no masters"
