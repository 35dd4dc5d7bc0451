"""What a task will read of objects in a store, told before it reads: then all of it is fetched side
by side, where one block after the other would wait for each."""

from __future__ import annotations

import math
from collections.abc import Iterator

from swavg.formats.tensors import Tensor
from swavg.planning.entries import Entries
from swavg.planning.plan import Plan, Span
from swavg.storage.sources import Source

FETCHED = 8 << 20
"""Bytes that a task has fetched at the same time, about; more where inputs are many."""
_MANY = 24 << 20
_RANGE = 1 << 18
"""Bytes of each input that a request is worth."""
_LEAST, _MOST = 1 << 12, 4 << 20
"""Bytes of the output that a task covers."""


def read_for_one(entries: Entries) -> float:
    """Bytes that are read for a byte of the output, at most."""
    most, known = 1.0, set()
    for number in range(len(entries)):
        if (key := entries.key(number)) in known:
            continue
        known.add(key)
        operation = entries.operations[entries.operation[number]]
        if operation.op != "bytes":
            bits = 0
            for member in operation.members:
                place = entries.table_of[member]
                form = entries.tables[place].form_of(entries.numbers[place][number])
                bits += form[0].bits
            most = max(most, bits / operation.dtype.bits)
    return most


def cut_of(entries: Entries) -> int:
    """Bytes of the output that a task covers, so that it reads about :data:`FETCHED`: a power of
    two."""
    ratio = read_for_one(entries)
    wanted = max(FETCHED, min(_MANY, ratio * _RANGE)) / ratio
    return max(_LEAST, min(_MOST, 1 << int(math.log2(wanted))))


def ranges_of(plan: Plan, number: int) -> Iterator[tuple[Source, int, int]]:
    """Sources with the bytes ``[start, stop)`` of them that a task reads: all but those of tensors
    that have to be gathered."""
    entries = plan.entries
    for span in plan.spans(plan.task(number)):
        operation = entries.operations[entries.operation[span.entry]]
        whole = operation.op == "bytes"
        turned = not whole and entries.forms[entries.form[span.entry]][1] is not None
        made = None
        for index, member in enumerate(operation.members):
            place = entries.table_of[member]
            checkpoint, columns = plan.checkpoints[member], entries.tables[place].columns
            at = entries.numbers[place][span.entry]
            if whole:
                yield checkpoint.sources[operation.source], at + span.start, at + span.stop
                continue
            dtype, _, strides = columns.forms[columns.form[at]]
            if turned or strides is not None or at in columns.others:
                if made is None:
                    made = entries.make(plan.checkpoints, span.entry)
                yield from _of_boxes(checkpoint.sources, made.tensors[index], span)
                continue
            base = checkpoint.tensors.base + columns.offset[at]
            start, stop = base + span.start * dtype.bits // 8, base + span.stop * dtype.bits // 8
            yield checkpoint.sources[columns.source[at]], start, stop


def _of_boxes(
    sources: tuple[Source, ...], tensor: Tensor, span: Span
) -> Iterator[tuple[Source, int, int]]:
    if not tensor.in_rows:
        return
    bits, inner = tensor.spec.dtype.bits, math.prod(tensor.grid[1:])
    for box in tensor.boxes:
        begin = box.start[0] * inner if box.start else 0
        low = max(span.start, begin)
        high = min(span.stop, begin + math.prod(box.shape))
        if low < high:
            start = box.offset + (low - begin) * bits // 8
            yield sources[box.source], start, box.offset + (high - begin) * bits // 8
