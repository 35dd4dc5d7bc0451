"""Jobs for what a method asks: until the engine takes rows itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from swavg.averaging import prepare_many
from swavg.job import Job, Path, Wanted
from swavg.methods import Request


def jobs_of(
    request: Request, outputs: Sequence[Path | None], arguments: Mapping[str, Any]
) -> list[Job]:
    """A job for each row and output; ``arguments`` are those of ``prepare_many``."""
    wanted = [
        Wanted(output, row.weights, row.members, row.method, row.details)
        for row, output in zip(request.rows, outputs, strict=True)
    ]
    jobs = prepare_many(request.inputs, wanted, **{**arguments, "policy": request.policy})
    return [replace(job, notes=(*job.notes, *request.notes)) for job in jobs]
