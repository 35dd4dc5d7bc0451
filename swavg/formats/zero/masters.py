"""Where the float32 masters lie, as DeepSpeed's zero_to_fp32 puts them together.

Of stages 1 and 2 a parameter is a stretch of its group, which the ranks' flat tensors are end to
end; of stage 3 every rank has a piece of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from swavg.errors import InputError
from swavg.formats.tensors import Shape, TensorSpec
from swavg.formats.zero.rank_file import RankFile, count_in
from swavg.formats.zero.rows import Cut, Flat, Row

Shapes = Mapping[str, Shape]


@dataclass(frozen=True, eq=False, slots=True)
class Partition:
    """What a rank's file of the optimizer holds: its flat tensors, and of each group the elements
    of padding behind each parameter (empty: none). ``ranks`` is how many there are, as it says."""

    file: RankFile
    stage: int
    ranks: int
    flats: Sequence[Flat]
    paddings: Sequence[object]


def read_partition(file: RankFile, top: Mapping[str, object]) -> Partition:
    """The flat tensors of a file. InputError."""
    state = file.dict_of("'optimizer_state_dict'", top.get("optimizer_state_dict"))
    # The bfloat16 optimizer of stage 1 does not tell.
    stage, ranks = count_in(state.get("zero_stage", 1)), count_in(state.get("partition_count"))
    if stage not in (1, 2, 3) or ranks is None:
        raise file.error("it tells no stage from 1 to 3, or no number of ranks")
    name = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    paddings = state.get("param_alignment_paddings")
    return Partition(
        file,
        stage,
        ranks,
        file.flats(name, enumerate(file.list_of(f"'{name}'", state.get(name)))),
        [] if paddings is None else file.list_of("'param_alignment_paddings'", paddings),
    )


def masters(partitions: Sequence[Partition], groups: Sequence[Shapes]) -> dict[str, Cut]:
    """The masters of the parameters in ``groups``, which are of the optimizer. InputError unless
    they fill the flat tensors but for their padding."""
    first = partitions[0]
    if not first.flats:
        raise first.file.error("it has no masters")
    dtype = first.flats[0].dtype
    for each in partitions:
        if each.stage == first.stage and each.ranks > len(partitions):
            raise InputError(
                os.path.dirname(each.file.path),
                f"is incomplete: files of {len(partitions)} of {each.ranks} ranks are here",
                hint="Copy those of all ranks into it, or give the others without it.",
            )
        if each.stage != first.stage or each.ranks != len(partitions):
            raise each.file.error(
                f"it is of stage {each.stage} and {each.ranks} ranks, and the folder of stage"
                f" {first.stage} and {len(partitions)}"
            )
        if any(flat.dtype is not dtype for flat in each.flats):
            raise each.file.error(f"its masters are not all {dtype.name} as the first one")
    cuts = _of_groups(partitions, groups) if first.stage < 3 else _of_ranks(partitions, groups)
    if len(cuts) < sum(map(len, groups)):
        raise first.file.error("a parameter is in two groups")
    return cuts


def _of_groups(partitions: Sequence[Partition], groups: Sequence[Shapes]) -> dict[str, Cut]:
    cuts = {}
    alignment = 2 * len(partitions)
    for each in partitions:
        if len(each.flats) != len(groups):
            raise each.file.error(f"it has {len(each.flats)} groups, the model file {len(groups)}")
    for number, shapes in enumerate(groups):
        row = Row.of([each.flats[number] for each in partitions])
        paddings = _paddings(partitions[0], number, len(shapes))
        start = 0
        for (name, shape), padding in zip(shapes.items(), paddings, strict=True):
            spec = TensorSpec(name, row.flats[0].dtype, shape)
            cuts[name] = Cut(spec, (row,), start, spec.numel)
            start += spec.numel + padding
        # The last rank's file may be without its padding.
        if start > row.numel or -(-start // alignment) != -(-row.numel // alignment):
            raise partitions[0].file.error(
                f"group {number} has {row.numel:,} elements, its parameters {start:,}"
            )
    return cuts


def _paddings(first: Partition, number: int, count: int) -> list[int]:
    if not first.paddings:
        return [0] * count
    own = first.paddings[number] if number < len(first.paddings) else None
    paddings = [count_in(each) for each in own] if isinstance(own, list) else []
    known = [padding for padding in paddings if padding is not None]
    if len(known) != count or len(paddings) != count:
        raise first.file.error(f"group {number} does not tell the padding of each parameter")
    return known


def _of_ranks(partitions: Sequence[Partition], groups: Sequence[Shapes]) -> dict[str, Cut]:
    specs = [
        TensorSpec(name, partitions[0].flats[0].dtype, shape)
        for shapes in groups
        for name, shape in shapes.items()
    ]
    rows = tuple(Row.of(each.flats) for each in partitions)
    needed = sum(_piece(spec, len(rows)) for spec in specs)
    for each, row in zip(partitions, rows, strict=True):
        if row.numel != needed:
            raise each.file.error(
                f"it has {row.numel:,} elements, and the rank's pieces of parameters {needed:,}"
            )
    return _of_pieces(rows, specs)


def frozen(
    files: Iterable[tuple[RankFile, Mapping[str, object]]], shapes: Shapes, ranks: int
) -> dict[str, Cut]:
    """Frozen parameters of these shapes, of which the model file of each rank has a piece; the
    files are taken one after the other. InputError."""
    what = "frozen_param_fragments"
    rows: list[Row] = []
    specs: list[TensorSpec] = []
    for file, top in files:
        pieces = file.dict_of(f"'{what}'", top.get(what))
        row = Row.of(file.flats(what, [(name, pieces.get(name)) for name in shapes]))
        own = zip(shapes.items(), row.flats, strict=True)
        told = [TensorSpec(name, flat.dtype, shape) for (name, shape), flat in own]
        specs = specs or told
        for spec, first, flat in zip(told, specs, row.flats, strict=True):
            if spec.dtype is not first.dtype or flat.numel != _piece(spec, ranks):
                raise file.error(
                    f"its piece of '{spec.name}' has {flat.numel:,} elements of {spec.dtype.name},"
                    f" not {_piece(spec, ranks):,} of {first.dtype.name}"
                )
        rows.append(row)
    return _of_pieces(tuple(rows), specs)


def _of_pieces(rows: tuple[Row, ...], specs: Iterable[TensorSpec]) -> dict[str, Cut]:
    """Tensors of which each row has a piece, one behind the other."""
    cuts = {}
    start = 0
    for spec in specs:
        cuts[spec.name] = Cut(spec, rows, start, _piece(spec, len(rows)))
        start += cuts[spec.name].each
    return cuts


def _piece(spec: TensorSpec, ranks: int) -> int:
    """Elements of a rank's piece, padding included."""
    return -(-spec.numel // ranks)
