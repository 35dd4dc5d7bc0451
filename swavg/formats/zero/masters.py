"""Where the float32 masters lie, as DeepSpeed's zero_to_fp32 puts them together.

Of stages 1 and 2 a parameter is a stretch of its group, which the ranks' flat tensors are end to
end; of stage 3 every rank has a piece of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from swavg.formats.checkpoint import Shape, TensorSpec
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
    stage, ranks = count_in(state.get("zero_stage")), count_in(state.get("partition_count"))
    if stage not in (1, 2, 3) or ranks is None:
        raise file.error("it tells no stage from 1 to 3, or no number of ranks")
    name = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    paddings = state.get("param_alignment_paddings")
    return Partition(
        file,
        stage,
        ranks,
        file.flats(name, file.list_of(f"'{name}'", state.get(name))),
        [] if paddings is None else file.list_of("'param_alignment_paddings'", paddings),
    )


def masters(partitions: Sequence[Partition], groups: Sequence[Shapes]) -> dict[str, Cut]:
    """The masters of the parameters in ``groups``, which are of the optimizer. InputError unless
    they fill the flat tensors but for their padding."""
    first = partitions[0]
    for each in partitions:
        if each.stage != first.stage or each.ranks != len(partitions):
            raise each.file.error(
                f"it is of stage {each.stage} and {each.ranks} ranks, and the folder of stage"
                f" {first.stage} and {len(partitions)}"
            )
        if {flat.dtype for flat in each.flats} - {flat.dtype for flat in first.flats}:
            raise each.file.error("its masters are of another dtype than those of the first rank")
    cuts = _of_pieces(partitions, groups) if first.stage == 3 else _of_groups(partitions, groups)
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
        # What is missing of the padding was left out of the file.
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


def _of_pieces(partitions: Sequence[Partition], groups: Sequence[Shapes]) -> dict[str, Cut]:
    cuts = {}
    rows = tuple(Row.of(each.flats) for each in partitions)
    start = 0
    for name, shape in (item for shapes in groups for item in shapes.items()):
        each = -(-math.prod(shape) // len(rows))
        dtypes = [row.flats[0].dtype for row in rows[:1] if row.flats]
        if not dtypes:
            raise partitions[0].file.error("it has no masters")
        cuts[name] = Cut(TensorSpec(name, dtypes[0], shape), rows, start, each)
        start += each
    for partition, row in zip(partitions, rows, strict=True):
        if row.numel != start:
            raise partition.file.error(
                f"it has {row.numel:,} elements, and the rank's pieces of parameters {start:,}"
            )
    return cuts


def frozen(
    files: Sequence[tuple[RankFile, Mapping[str, object]]], shapes: Shapes
) -> dict[str, Cut]:
    """Frozen parameters of these shapes, of which each model file has a piece. InputError."""
    name = "frozen_param_fragments"
    pieces = [file.dict_of(f"'{name}'", top.get(name)) for file, top in files]
    cuts = {}
    for text, shape in shapes.items():
        each, flats = -(-math.prod(shape) // len(files)), []
        for rank, ((file, _), own) in enumerate(zip(files, pieces, strict=True)):
            (flat,) = file.flats(f"{name}.{text}", [own.get(text)])
            if flat.numel < min(each, math.prod(shape) - rank * each):
                raise file.error(f"its piece of '{text}' is too short")
            flats.append(flat)
        if len({flat.dtype for flat in flats}) > 1:
            raise files[0][0].error(f"'{text}' is of another dtype in other ranks' files")
        spec = TensorSpec(text, flats[0].dtype, shape)
        cuts[text] = Cut(spec, tuple(Row.of([flat]) for flat in flats), 0, each)
    return cuts
