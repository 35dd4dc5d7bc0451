"""A checkpoint with some of its tensors replaced and everything else copied as bytes.

The new tensors lie in a small temporary file; the output is planned as copies, those of the
checkpoint and those of that file, and written by the engine like any average.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from swavg.errors import NumericsError
from swavg.formats.base import Checkpoint, Extent, Task, Tensor
from swavg.formats.files import InputFile
from swavg.formats.output import choose_target, lay_out
from swavg.job import Job
from swavg.kernels.floats import narrow
from swavg.pieces import Budget, Resources
from swavg.plan import Plan
from swavg.policy import Policy
from swavg.recipe import as_text, short_names


def rounded(tensor: torch.Tensor, checkpoint: Checkpoint, name: str) -> bytes:
    """The bytes of ``tensor`` in the dtype that ``name`` has in the checkpoint; NumericsError for
    NaN, Inf, and what overflows that dtype."""
    spec = checkpoint.tensors[name].spec
    here = tensor.detach().cpu()
    if not spec.dtype.floating:
        return here.numpy().astype(spec.dtype.numpy()).tobytes()
    values = here.double().contiguous().view(-1).numpy()
    out = np.empty(spec.nbytes, np.uint8)
    with np.errstate(all="ignore"):
        finite = narrow(values.copy(), spec.dtype, out)
    if not finite:
        worst = values[np.argmax(~np.isfinite(values) | (np.abs(values) == np.abs(values).max()))]
        said = f"overflows {spec.dtype}" if np.isfinite(worst) else "is not finite"
        raise NumericsError(
            f"'{name}' becomes {worst:.6g}, which {said}.",
            hint="Do the data or the averaged weights hold NaN or Inf?"
            if not np.isfinite(worst)
            else "Average into a wider dtype first: swavg average --dtype float32.",
        )
    return out.tobytes()


@contextmanager
def held(parts: Mapping[str, bytes], checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """The bytes as a checkpoint of its own in a temporary file."""
    tensors: dict[str, Tensor] = {}
    places: dict[bytes, int] = {}
    with tempfile.NamedTemporaryFile(prefix="swavg-") as file:
        for name, data in parts.items():
            spec = checkpoint.tensors[name].spec
            # Equal bytes lie once: tied names stay one tensor.
            offset = places.setdefault(data, file.tell())
            if offset == file.tell():
                file.write(data)
            tensors[name] = Tensor(spec, Extent(0, offset, spec.nbytes))
        file.flush()
        yield Checkpoint("recomputed statistics", (InputFile.identify(file.name),), tensors)


def copy_of(name: str, index: int, source: Tensor) -> Task:
    """The bytes of ``source``, a tensor of the checkpoint of this index, under ``name``."""
    spec = source.spec
    return Task(name, "copy", spec.dtype, spec.shape, (index,), (source,))


def copying_job(
    checkpoints: Sequence[Checkpoint],
    tasks: Sequence[Task],
    where: str | None,
    values: Mapping[str, Any],
    force: bool,
) -> Job:
    """Copies of bytes, of which the first checkpoint is the template."""
    template = checkpoints[0]
    ties = template.ties
    policy, resources = Policy(), Resources(threads=1)
    plan = Plan(short_names([template.path]), (1.0,), policy, tuple(tasks), ties, (), ())
    target = choose_target(where, template, None)
    output = lay_out(target, tasks, ties, template, 0, as_text(dict(values)))
    budget = Budget.within(resources, output.layouts, policy)
    return Job(
        checkpoints=tuple(checkpoints),
        members=(0,),
        plan=plan,
        output=output,
        budget=budget,
        resources=resources,
        recipe=values,
        notes=(),
        force=force,
        geometry=False,
    )
