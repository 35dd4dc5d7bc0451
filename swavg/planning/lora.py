"""The exact average of low-rank adapters: the products averaged, and not the factors.

A sum of products is one product: of the A stacked along the rank, and of the B side by side, each
with its weight and scale folded in. So each input gets a virtual table, in which its factors have
the rank of all, with zeros where the others' are, and the weighted sum puts them side by side.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from swavg.dtypes import BY_NAME, DType
from swavg.errors import MismatchError
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.tensors import Box, Shape, TableBuilder, Tensor, TensorSpec
from swavg.planning.adapters import CONFIG, HEADER, Settings, as_header
from swavg.planning.factors import Adapter, Pair, adapter_of
from swavg.planning.match import spelling
from swavg.planning.policy import Policy
from swavg.planning.row import Row
from swavg.storage.sources import Memory

_FLOAT32 = BY_NAME["float32"]
_ZEROS = 16
"""Bytes of zeros: an element of any dtype."""


class FactorSum(NamedTuple):
    """How a tensor is made that is not averaged as all others: the members' weights (None: the
    last one's is taken), and the dtype of the sum."""

    weights: tuple[float, ...] | None
    dtype: DType


@dataclass(frozen=True, slots=True)
class Concatenated:
    """What is averaged in place of the inputs: a checkpoint for each member of each row, the rows
    over them, and by row how factors are made (by canonical name) and files that change."""

    checkpoints: list[Checkpoint] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    factor_sums: list[Mapping[str, FactorSum]] = field(default_factory=list)
    files: list[Mapping[str, bytes]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def concatenate(
    checkpoints: Sequence[Checkpoint], shown: Sequence[str], rows: Sequence[Row], policy: Policy
) -> Concatenated:
    """What the rows are of: the inputs, or for ``policy.lora`` exact what has the factors of each
    side by side. MismatchError or InputError for what is no plain LoRA."""
    if policy.lora != "exact":
        same: list[Mapping[str, FactorSum]] = [{} for _ in rows]
        files: list[Mapping[str, bytes]] = [{} for _ in rows]
        return Concatenated(list(checkpoints), list(shown), list(rows), same, files)
    adapters = [
        adapter_of(checkpoint, name) for checkpoint, name in zip(checkpoints, shown, strict=True)
    ]
    places = {tuple(each.place for each in adapter.settings) for adapter in adapters}
    if len(places) > 1:
        raise MismatchError(
            f"Some of the adapters have an {CONFIG}, and some have none: what these are scaled by"
            " is not known."
        )
    made = Concatenated()
    for row in rows:
        own = [adapters[member] for member in row.members]
        exact = _Concatenation(own, row.weights, strict=policy.strict)
        first = len(made.checkpoints)
        made.checkpoints.extend(exact.checkpoints())
        made.shown.extend(shown[member] for member in row.members)
        numbers = tuple(range(first, len(made.checkpoints)))
        details = {**row.details, "rank": max(exact.ranks.values())}
        made.rows.append(replace(row, members=numbers, details=details))
        made.factor_sums.append(exact.factor_sums)
        made.files.append(exact.files())
        made.notes.append(exact.note())
    if any(adapter.unscaled for adapter in adapters):
        made.warnings.append(
            f"no {CONFIG} and no alpha says what the factors are scaled by: 1 was taken, and the"
            " average is to be loaded with an alpha that is its rank, as diffusers does"
        )
    return made


class _Concatenation:
    """The factors of a row's members side by side."""

    def __init__(
        self, adapters: Sequence[Adapter], weights: Sequence[float], *, strict: bool
    ) -> None:
        self._adapters = adapters
        self._strict = strict
        names = [adapter.checkpoint.tensors.columns.names for adapter in adapters]
        # As they are matched later.
        self._spell = spelling(*names)
        self._pairs = [
            {self._spell(name): pair for name, pair in adapter.pairs.items()}
            for adapter in adapters
        ]
        self.ranks: dict[str, int] = {}
        self._begins: list[dict[str, int]] = []
        for pairs in self._pairs:
            own = {name: self.ranks.get(name, 0) for name in pairs}
            self._begins.append(own)
            for name, pair in pairs.items():
                self.ranks[name] = own[name] + pair.rank
        self.factor_sums: dict[str, FactorSum] = {}
        self._shapes: dict[str, Shape] = {}
        self._alphas: dict[str, int] = {}
        for name, rank in self.ranks.items():
            self._add(name, rank, weights)
        data = struct.pack(f"<{_ZEROS}x{len(self._alphas)}f", *self._alphas.values())
        self._memory = Memory("ranks of factors", memoryview(data))

    def _add(self, name: str, rank: int, weights: Sequence[float]) -> None:
        """How the tensors of a pair are made."""
        spell, pairs = self._spell, [own.get(name) for own in self._pairs]
        last = next(pair for pair in reversed(pairs) if pair is not None)
        scaled = tuple(
            0.0 if pair is None else weight * pair.scale
            for pair, weight in zip(pairs, weights, strict=True)
        )
        dtypes = [pair.down.spec.dtype for pair in pairs if pair is not None]
        down, up = last.down.spec, last.up.spec
        self.factor_sums[name] = FactorSum((1.0,) * len(pairs), _widest(dtypes))
        self._shapes[name] = (rank, *down.shape[1:])
        self.factor_sums[spell(up.name)] = FactorSum(scaled, _FLOAT32)
        self._shapes[spell(up.name)] = (up.shape[0], rank, *up.shape[2:])
        for adapter, pair in zip(self._adapters, pairs, strict=True):
            if pair is not None and pair.bias:
                shape = adapter.checkpoint.tensors[pair.bias].spec.shape
                self.factor_sums[spell(pair.bias)] = FactorSum(scaled, _FLOAT32)
                self._shapes[spell(pair.bias)] = shape
            if pair is not None and pair.alpha:
                self.factor_sums[spell(pair.alpha)] = FactorSum(None, _FLOAT32)
                self._alphas[spell(pair.alpha)] = rank

    def checkpoints(self) -> list[Checkpoint]:
        """The members, with factors of the rank of all."""
        return [
            self._virtual(*member)
            for member in zip(self._adapters, self._pairs, self._begins, strict=True)
        ]

    def _virtual(
        self, adapter: Adapter, pairs: Mapping[str, Pair], begins: Mapping[str, int]
    ) -> Checkpoint:
        checkpoint, memory = adapter.checkpoint, len(adapter.checkpoint.sources)
        parts = {self._spell(pair.up.spec.name): (name, 1) for name, pair in pairs.items()}
        parts |= {name: (name, 0) for name in pairs}
        builder = TableBuilder()
        table, written = checkpoint.tensors, {}
        for number, own in enumerate(table):
            name = self._spell(own)
            written[name] = own
            if name in self._alphas:
                continue
            # One that is alone stays as it is: a table holds it otherwise.
            module, axis = parts.get(name, (name, -1))
            if axis >= 0 and self.ranks[module] > table[own].spec.shape[axis]:
                shape = table[own].spec.shape
                shape = (*shape[:axis], self.ranks[module], *shape[axis + 1 :])
                builder.add_boxes(_padded(table.at(number), shape, axis, begins[module], memory))
            elif number in table.columns.others:
                builder.add_boxes(table.at(number))
            else:
                offset = table.base + table.columns.offset[number]
                builder.add(own, table.form_of(number), offset, table.columns.source[number])
        for place, name in enumerate(self._alphas):
            builder.add(written.get(name, name), (_FLOAT32, (), None), _ZEROS + 4 * place, memory)
        if not self._strict:
            # What an adapter does not change it changes by nothing.
            for name in [name for name in self._shapes if name not in written]:
                zero = _zeros(name, self.factor_sums[name].dtype, self._shapes[name], memory)
                builder.add_boxes(zero)
        return replace(
            checkpoint,
            sources=(*checkpoint.sources, self._memory),
            tensors=builder.build(),
            metadata=self._metadata(adapter),
            # The structure of a PyTorch file is that of its tensors as they were.
            extras=replace(checkpoint.extras, template=None),
        )

    def _metadata(self, adapter: Adapter) -> dict[str, str]:
        metadata = dict(adapter.checkpoint.metadata)
        ranks = set(self.ranks.values())
        for name in ("ss_network_dim", "ss_network_alpha"):
            if name in metadata:
                metadata[name] = str(max(ranks))
        if HEADER in metadata:
            metadata[HEADER] = as_header(
                {each.prefix: self._renewed(each) for each in adapter.settings}
            )
        return metadata

    def files(self) -> dict[str, bytes]:
        """Files of the last member that change."""
        config = next((each for each in self._adapters[-1].settings if each.place == CONFIG), None)
        if config is None:
            return {}
        return {CONFIG: (json.dumps(self._renewed(config), indent=2) + "\n").encode()}

    def _renewed(self, settings: Settings) -> dict[str, object]:
        pairs = {name: pair for own in self._pairs for name, pair in own.items()}
        ranks = {pairs[name].module: rank for name, rank in self.ranks.items()}
        return settings.renewed(ranks, retarget=self.ranks.keys() != self._pairs[-1].keys())

    def note(self) -> str:
        """The ranks, in words."""
        low, high = min(self.ranks.values()), max(self.ranks.values())
        most = [max(pair.rank for pair in each.pairs.values()) for each in self._adapters]
        whole = f"{high}" if low == high else f"{low} to {high}"
        return (
            f"lora: exact: factors of rank {' + '.join(map(str, most[:8]))}"
            f"{' + ...' if len(most) > 8 else ''} side by side have rank {whole}"
        )


def _widest(dtypes: Sequence[DType]) -> DType:
    """The one that holds the values of all."""
    most = max(dtype.bits for dtype in dtypes)
    widest = {dtype.name: dtype for dtype in dtypes if dtype.bits == most}
    return next(iter(widest.values())) if len(widest) == 1 else _FLOAT32


def _zeros(name: str, dtype: DType, shape: Shape, source: int) -> Tensor:
    box = Box(source, 0, (0,) * len(shape), shape, (0,) * len(shape))
    return Tensor(TensorSpec(name, dtype, shape), (box,), shape)


def _padded(tensor: Tensor, shape: Shape, axis: int, begin: int, source: int) -> Tensor:
    """The tensor from ``begin`` on along an axis of ``shape``, and zeros before and behind it."""
    spec = tensor.spec

    def moved(start: Shape, by: int) -> Shape:
        return (*start[:axis], start[axis] + by, *start[axis + 1 :])

    boxes = [replace(box, start=moved(box.start, begin)) for box in tensor.boxes]
    end = begin + spec.shape[axis]
    for first, stop in ((0, begin), (end, shape[axis])):
        if stop > first:
            extents = (*shape[:axis], stop - first, *shape[axis + 1 :])
            start = moved((0,) * len(shape), first)
            boxes.append(Box(source, 0, start, extents, (0,) * len(shape)))
    return Tensor(TensorSpec(spec.name, spec.dtype, shape), tuple(boxes), shape)
