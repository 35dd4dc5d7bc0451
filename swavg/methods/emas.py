"""The EMA of a series, from its start or from where an earlier one ended."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

from swavg import weights
from swavg.averaging import prepare_many
from swavg.errors import InputError, RequestError
from swavg.job import Job, Path, Wanted
from swavg.methods.recorded import key_of, recorded
from swavg.methods.smooth import Smoothing, known
from swavg.policy import Policy
from swavg.series import Series


def ema(
    series: Series, how: Smoothing, *, output: Path | None, resume: Path | None = None, **run: Any
) -> Job:
    """The EMA of a series; ``resume`` continues an earlier one with its later checkpoints.

    An EMA that is continued equals one done all at once, to the rounding of the file it was kept
    in: keep it in float32 (``Policy(dtype="float32")``). ``run`` are arguments of
    :func:`swavg.averaging.prepare_many`. Raises RequestError, InputError and what that raises.
    """
    if resume is None:
        details = how.details(series.steps, len(series))
        wanted = Wanted(output, how.over(series.steps), None, "ema", details)
        return prepare_many(series.paths, [wanted], **run)[0]
    earlier = recorded(resume, "ema", key_of(run))
    for name, value in (("decay", how.decay), ("per_step", how.per_step), ("debias", how.debias)):
        was = earlier.get(name, False)
        if was != value and not (name == "decay" and abs(was - value) < 1e-12):
            raise RequestError(f"{os.fspath(resume)} was made with {name} {was}, not {value}.")
    if earlier.get("warmup") != how.warmup:
        raise RequestError(f"{os.fspath(resume)} was made with warm-up {earlier.get('warmup')}.")
    held = int(earlier["n"])
    step = earlier.get("step")
    new = [s for s in series.snapshots if step is None or s.step is None or s.step > step]
    if not new:
        raise RequestError(
            f"No checkpoint is later than step {step}, where {os.fspath(resume)} ended."
        )
    steps = [snapshot.step for snapshot in new]
    before = float(earlier.get("mass", 1.0))
    if how.warmup is not None:
        decays = how.warmed_up(held, len(new))
    elif how.per_step:
        if step is None:
            raise InputError(resume, "does not say at which step it ended")
        decays = weights.decays_by_step((step, *known(steps)), how.decay)
        if how.debias and held == 1:
            # One checkpoint alone stands for a gap as long as the next one's.
            before = 1 - decays[0]
    else:
        decays = (how.decay,) * len(new)
    numbers = weights.resume_with_decays(decays, mass=before)
    details = how.details(steps, held + len(new))
    if how.debias:
        details["mass"] = 1 - (1 - before) * math.prod(decays)
    wanted = Wanted(output, numbers, None, "ema", details)
    policy = replace(run.get("policy") or Policy(), mixed_dtypes=True)
    paths = [resume, *(s.path for s in new)]
    job = prepare_many(paths, [wanted], **{**run, "policy": policy})[0]
    if len(new) < len(series):
        left = len(series) - len(new)
        note = f"left out {left} up to step {step}, which the EMA holds already"
        job = replace(job, notes=(*job.notes, note))
    return job
