"""A checkpoint with some of its tensors replaced and everything else copied as bytes."""

from __future__ import annotations

from array import array
from collections.abc import Mapping

import numpy as np
import torch

from swavg.dtypes import DType
from swavg.engine.kernels.floats import narrow
from swavg.engine.recipe import as_text, short_names
from swavg.errors import NumericsError
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import Specs, distinct
from swavg.formats.tensors import TableBuilder
from swavg.planning.decide import Decisions, Operation
from swavg.planning.lay_out import lay_out
from swavg.planning.match import distinct_tables
from swavg.planning.plan import Plan
from swavg.planning.policy import Policy
from swavg.planning.row import Row
from swavg.planning.targets import choose_target
from swavg.storage.sources import Memory


def rounded(tensor: torch.Tensor, dtype: DType, name: str) -> bytes:
    """The bytes of ``tensor`` in this dtype; NumericsError, which names it, for NaN, Inf, and what
    overflows."""
    here = tensor.detach().cpu()
    if not dtype.floating:
        return here.numpy().astype(dtype.numpy()).tobytes()
    values = here.double().contiguous().view(-1).numpy()
    out = np.empty(dtype.nbytes(values.size), np.uint8)
    with np.errstate(all="ignore"):
        finite = narrow(values.copy(), dtype, out)
    if not finite:
        worst = values[np.argmax(~np.isfinite(values) | (np.abs(values) == np.abs(values).max()))]
        said = f"overflows {dtype}" if np.isfinite(worst) else "is not finite"
        raise NumericsError(
            f"'{name}' becomes {worst:.6g}, which {said}.",
            hint="Do the data or the averaged weights hold NaN or Inf?"
            if not np.isfinite(worst)
            else "Average into a wider dtype first: dtype='float32'.",
        )
    return out.tobytes()


def in_memory(tensors: Mapping[str, torch.Tensor], like: Checkpoint) -> Checkpoint:
    """A checkpoint of these tensors, in the dtypes and shapes that their names have in another."""
    builder, data = TableBuilder(), bytearray()
    for name, tensor in tensors.items():
        spec = like.tensors[name].spec
        builder.add(name, (spec.dtype, spec.shape, None), len(data))
        data += rounded(tensor, spec.dtype, name)
    source = Memory("recomputed statistics", memoryview(data))
    return Checkpoint(source.name, "memory", (source,), builder.build())


def copy_with(
    template: Checkpoint,
    replaced: Checkpoint,
    output: str | None,
    recipe: dict[str, object],
    *,
    name: str,
    force: bool,
) -> Plan:
    """Copies of bytes: the tensors of ``replaced``, and the others of ``template``. In an
    ``output`` that is a folder the file has this ``name``."""
    checkpoints = (replaced, template)
    tables, _ = distinct_tables(checkpoints)
    names = template.tensors.columns.names
    own = [tensor.spec for tensor in template.tensors.values()]
    unchanged = bytes(name not in replaced.tensors for name in names)
    specs = Specs(names, *distinct((spec.dtype, spec.shape) for spec in own))
    operations, operation = distinct(
        Operation("copy", spec.dtype, "float32", (member,))
        for spec, member in zip(own, unchanged, strict=True)
    )
    numbers = tuple(array("q", [table.index.get(name, -1) for name in names]) for table in tables)
    decisions = Decisions(
        specs, operations, operation, tables, numbers, unchanged, template.ties, ()
    )
    # Of a row, the last member is the template.
    row, policy = Row((1.0,), (1,)), Policy()
    target = choose_target(output, template, Policy(), name=name, force=force)
    entries, outputs = lay_out(checkpoints, [row], [decisions], [target], [as_text(recipe)], policy)
    shown = short_names([each.path for each in checkpoints])
    return Plan(checkpoints, shown, (row,), policy, entries, outputs, (recipe,), ())
