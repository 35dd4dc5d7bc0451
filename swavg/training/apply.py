"""Averages put straight into a model: files are streamed into its parameters, tensor by tensor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swavg import weights as schedules
from swavg.computing import spelled
from swavg.dtypes import Accumulator, DType
from swavg.errors import MismatchError, NumericsError, RequestError
from swavg.formats import base, open_checkpoint
from swavg.formats.files import FilePool
from swavg.formats.read import gather
from swavg.kernels.base import Arithmetic, ReadChunk
from swavg.kernels.cpu import CpuKernel
from swavg.kernels.repair import Trouble, repair
from swavg.recipe import short_names
from swavg.training.bundle import Bundle, bundled
from swavg.training.matching import Match, match, model_dtype
from swavg.training.state import own_rows, own_tensors, writer
from swavg.training.wrapped import check_module, is_sharded, local, part_of

_BLOCK = 1 << 18

Path = str | os.PathLike[str]


def apply_swa(
    model: nn.Module,
    checkpoints: Sequence[Path | base.Checkpoint],
    weights: Sequence[float] | None = None,
    strict: bool = True,
    *,
    sum_to: schedules.Sum = "one",
    buffers: bool = True,
    key: str | None = None,
    allow_nonfinite: bool = False,
) -> tuple[str, ...]:
    """Put the weighted sum of checkpoints into a model, without a second copy of it.

    ``checkpoints`` are files or folders of any format that swavg opens (``key`` is the dotted path
    of the state dict in PyTorch files). ``weights`` are one number each (None: the mean); they
    must sum to 1 unless ``sum_to`` is ``normalize`` or ``raw``. Parameters and floating-point
    buffers (running statistics) become the sum, rounded once to their own dtype: the bits that
    ``swavg.average`` and ``load_state_dict`` give where the files have the model's dtypes.
    Integer buffers take the last checkpoint's values. With ``buffers`` False only parameters are
    written. What else the checkpoints hold is not looked at.

    Strict: every tensor of the model must be in every checkpoint, in its shape; MismatchError
    names those that are not. Not strict: they keep the model's own value, and their names are
    returned. Either way this is decided before the model is touched.

    A value that is NaN or Inf is refused with NumericsError, as ``swavg average`` does, unless
    ``allow_nonfinite`` is set (or all checkpoints have the same Inf there). That shows only while
    the files are read: the model then holds the average in part, as after an InputError.

    Beside the model this takes some megabytes; for a tensor that is sharded along another
    dimension than its first, the whole of that tensor. In a distributed run every rank calls this
    and reads what it holds itself.
    """
    with Blend(
        model,
        checkpoints,
        strict=strict,
        buffers=buffers,
        key=key,
        allow_nonfinite=allow_nonfinite,
    ) as blend:
        blend.apply(weights, sum_to=sum_to)
        return blend.kept


class Blend:
    """Checkpoints that are opened and matched with a model once, to put many weighted sums of
    them into it.

    ``kept`` are the names of the model's tensors that keep their own value (only if not strict).
    The arguments and the errors are those of :func:`apply_swa`. ``with`` or :meth:`close` closes
    the files.
    """

    def __init__(
        self,
        model: nn.Module,
        checkpoints: Sequence[Path | base.Checkpoint],
        *,
        strict: bool = True,
        buffers: bool = True,
        key: str | None = None,
        allow_nonfinite: bool = False,
    ) -> None:
        if isinstance(checkpoints, (str, os.PathLike)):
            raise RequestError("The checkpoints are one path.", hint="Give a list of paths.")
        if not checkpoints:
            raise RequestError("No checkpoints given.")
        check_module(model)
        shared: dict[Any, Any] = {}
        self._checkpoints = [
            each
            if isinstance(each, base.Checkpoint)
            else open_checkpoint(os.fspath(each), key=key, shared=shared)
            for each in checkpoints
        ]
        self._shown = short_names([each.path for each in self._checkpoints])
        self._model = model
        self._buffers = buffers
        self._allow_nonfinite = allow_nonfinite
        tensors = own_tensors(model, buffers=buffers)
        self._matches, self.kept = match(tensors, self._checkpoints, self._shown, strict)
        numel = sum(each.sources[0].spec.numel for each in self._matches)
        # A multiple of 8: a block of any dtype is whole bytes.
        self._block = min(_BLOCK, -(-numel // 8) * 8 or 8)
        self._kernel = CpuKernel(2 * self._block)
        self._staging = torch.empty(16 * self._block, dtype=torch.uint8)
        self._bytes = self._staging.numpy().data
        self._pool = FilePool()
        self._kinds: list[tuple[Any, ...]] = []
        self._bundles: list[Bundle] = []
        self._alone: list[Match] = []

    def __enter__(self) -> Blend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files. They are opened again when they are needed."""
        self._pool.close()

    def apply(
        self, weights: Sequence[float] | None = None, *, sum_to: schedules.Sum = "raw"
    ) -> None:
        """Put the sum with ``weights`` (None: the mean), of any sign and sum, into the model.

        Raises RequestError for another count of weights, InputError for a file that changed since
        it was opened, NumericsError as :func:`apply_swa`.
        """
        n = len(self._checkpoints)
        numbers = schedules.mean(n) if weights is None else schedules.checked(weights, n, sum_to)
        # Asked for anew: a model that was moved has other buffers, FSDP2 puts its shards back.
        tensors = own_tensors(self._model, buffers=self._buffers)
        self._arrange(tensors)
        with _writing(tensors.values()):
            for bundle in self._bundles:
                self._make_bundle(bundle, [tensors[each.name] for each in bundle.matches], numbers)
            for each in self._alone:
                self._make(each, tensors[each.name], numbers)
        for checkpoint in self._checkpoints:
            for file in checkpoint.files:
                file.check()

    def _arrange(self, tensors: Mapping[str, Tensor]) -> None:
        """Bundle what is small. Raises MismatchError for a model that was changed."""
        own = [tensors.get(each.name) for each in self._matches]
        kinds = [() if each is None else (each.shape, each.dtype, each.device) for each in own]
        if kinds == self._kinds:
            return
        for each, tensor in zip(self._matches, own, strict=True):
            if tensor is None or tuple(tensor.shape) != each.sources[0].spec.shape:
                raise MismatchError(f"'{each.name}' of the model is no longer what it was.")
        self._bundles, self._alone = bundled(self._matches, tensors, self._block)
        self._kinds = kinds

    def _make_bundle(
        self, bundle: Bundle, tensors: Sequence[Tensor], weights: Sequence[float]
    ) -> None:
        dtype = _model_dtype(bundle.matches[0], tensors[0])
        arithmetic = _arithmetic(bundle.matches[0], dtype, weights)

        def read(index: int, data: memoryview) -> None:
            files = self._checkpoints[index].files
            bundle.read(index, lambda file, *to: self._pool.read_into(files[file], *to), data)

        if arithmetic is None:
            last = len(self._checkpoints) - 1
            dtype = bundle.matches[0].sources[-1].spec.dtype
            read(last, self._bytes[: dtype.nbytes(bundle.count)])
        else:
            self._sum(arithmetic, bundle.count, 1, read, bundle.at)
        made = self._staging[: dtype.nbytes(bundle.count)].view(getattr(torch, dtype.name))
        sizes = [tensor.numel() for tensor in tensors]
        parts = made.to(tensors[0].device).split_with_sizes(sizes)
        shaped = [part.view(own.shape) for part, own in zip(parts, tensors, strict=True)]
        torch._foreach_copy_(list(tensors), shaped)

    def _make(self, each: Match, tensor: Tensor, weights: Sequence[float]) -> None:
        dtype = _model_dtype(each, tensor)
        if not is_sharded(tensor):
            self._fill(each, tensor, dtype, 0, weights)
            return
        rows = own_rows(tensor)
        if rows is not None:
            self._fill(each, rows.part, dtype, rows.first, weights)
            return
        whole = torch.empty(tensor.shape, dtype=tensor.dtype)
        self._fill(each, whole, dtype, 0, weights)
        local(tensor).copy_(part_of(whole, tensor))

    def _fill(
        self, each: Match, target: Tensor, dtype: DType, first: int, weights: Sequence[float]
    ) -> None:
        """Write the elements from ``first`` on, in row-major order, to all of ``target``."""
        arithmetic = _arithmetic(each, dtype, weights)
        put = writer(target)
        parts = 1 if arithmetic is None else 2 if dtype.kind == "complex" else 1
        for start in range(0, target.numel(), self._block):
            stop = min(start + self._block, target.numel())
            if arithmetic is None:
                made = self._last(each, first + start, first + stop)
            else:

                def read(
                    index: int, data: memoryview, start: int = start, stop: int = stop
                ) -> None:
                    self._read(index, each.sources[index], first + start, first + stop, data)

                def at(index: int, start: int = start) -> tuple[Match, int]:
                    return each, first + start + index

                self._sum(arithmetic, stop - start, parts, read, at)
                made = self._staging[: dtype.nbytes(stop - start)].view(target.dtype)
            put(start, stop, made)

    def _last(self, each: Match, start: int, stop: int) -> Tensor:
        """Elements of the last checkpoint, in its own dtype."""
        dtype = each.sources[-1].spec.dtype
        data = self._bytes[: dtype.nbytes(stop - start)]
        self._read(len(each.sources) - 1, each.sources[-1], start, stop, data)
        return self._staging[: len(data)].view(getattr(torch, dtype.name))

    def _sum(
        self,
        arithmetic: Arithmetic,
        count: int,
        parts: int,
        read: ReadChunk,
        at: Callable[[int], tuple[Match, int]],
    ) -> None:
        """Fill the front of the staging buffer with ``count`` elements of the sum. ``at`` says
        which tensor's, and where in it, one of them is."""
        out = self._bytes[: arithmetic.output.nbytes(count * parts)]
        if self._kernel.weighted_sum(arithmetic, count * parts, read, out):
            return
        trouble = repair(arithmetic, count * parts, read, out)
        if trouble is not None and not trouble.kept and not self._allow_nonfinite:
            each, index = at(trouble.index // parts)
            raise self._refused(each, arithmetic, index, trouble)

    def _read(
        self, index: int, source: base.Tensor, start: int, stop: int, data: memoryview
    ) -> None:
        file = self._checkpoints[index].files[source.extent.file]
        if source.extent.strides is None:
            offset = source.extent.offset + source.spec.dtype.nbytes(start)
            self._pool.read_into(file, offset, data)
        elif stop > start:
            gather(self._pool, file, source, start, stop, data)

    def _refused(
        self, each: Match, arithmetic: Arithmetic, index: int, trouble: Trouble
    ) -> NumericsError:
        shape = each.sources[0].spec.shape
        position = [int(at) for at in np.unravel_index(index, shape)] if shape else []
        place = f"'{each.name}'" + (f" at {position}" if position else "")
        after = "The model holds the average in part now."
        if trouble.inputs:
            input_, value = trouble.inputs[0]
            return NumericsError(
                f"{self._shown[input_]}: {place} is {spelled(value)}.",
                hint=f"Leave that checkpoint out, or set allow_nonfinite=True. {after}",
            )
        return NumericsError(
            f"{place}: the sum {trouble.value:.6g} overflows {arithmetic.output}.",
            hint=f"Set allow_nonfinite=True to let it through. {after}",
        )


def _writing(tensors: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """In which the tensors can be written to. Those made in inference mode only there."""
    if any(tensor.is_inference() for tensor in tensors):
        return torch.inference_mode()
    return torch.no_grad()


def _model_dtype(each: Match, tensor: Tensor) -> DType:
    found = model_dtype(tensor)
    if found is None:
        raise MismatchError(f"'{each.name}' of the model is {tensor.dtype} now.")
    return found


def _arithmetic(each: Match, dtype: DType, weights: Sequence[float]) -> Arithmetic | None:
    """How the sum is taken; None for integers, which are not summed."""
    if not dtype.floating:
        return None
    inputs = tuple(source.spec.dtype for source in each.sources)
    # As swavg.plan.accumulator: the widest that the inputs ask for.
    wide = any(each.accumulator == "float64" for each in inputs)
    kind: Accumulator = "float64" if wide else "float32"
    uniform = schedules.is_uniform(weights)
    return Arithmetic(
        tuple(each.part for each in inputs), tuple(weights), uniform, kind, dtype.part
    )
