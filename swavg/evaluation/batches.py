"""Data to go through again and again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from swavg.training.batches import map_items, to_device

# Batches are kept in memory up to this many bytes.
_KEPT = 256 << 20
_SEED = 0


class Passes:
    """Data to go through again and again, the same each time, with tensors on ``device``.

    Batches are kept in memory if all of them have at most 256 MiB, or if only the first ``most``
    are wanted; others are made anew for each pass, from the same state of torch's random numbers.
    """

    def __init__(self, source: Iterable[Any], device: str = "cpu", most: int | None = None) -> None:
        self._source = source
        self._device = device
        self._most = most
        self._kept: list[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[Any] | None = []
        size = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            for batch in islice(self._source, self._most):
                there = to_device(batch, self._device)
                size += _bytes(there)
                if self._most is None and size > _KEPT:
                    kept = None
                if kept is not None:
                    # A loader may fill the same tensor again.
                    kept.append(map_items(there, _copied))
                yield there
        self._kept = kept


def _copied(item: object) -> object:
    return item.clone() if isinstance(item, Tensor) else item


def _bytes(batch: object) -> int:
    if isinstance(batch, Tensor):
        return batch.nbytes
    if isinstance(batch, Mapping):
        return sum(map(_bytes, batch.values()))
    return sum(map(_bytes, batch)) if isinstance(batch, (tuple, list)) else 0
