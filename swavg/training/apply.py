"""Averages put straight into a model: files are streamed into its parameters."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from swavg import weights as schedules
from swavg.formats.checkpoint import Checkpoint
from swavg.training.model_plan import ModelPlan, Path


def apply_swa(
    model: nn.Module,
    checkpoints: Sequence[Path | Checkpoint],
    weights: Sequence[float] | None = None,
    strict: bool = True,
    *,
    sum_to: schedules.Sum = "one",
    key: str | None = None,
    strip_prefix: str | Sequence[str] = (),
    allow_nonfinite: bool = False,
) -> tuple[str, ...]:
    """Put the weighted sum of checkpoints into a model, without a second copy of it.

    ``checkpoints`` are files or folders of any format that swavg opens (``key`` is the dotted path
    of the state dict in PyTorch files). Names are compared without what wrappers add, and without
    ``strip_prefix`` (one or several) where they begin with it, in files and model alike.
    ``weights`` are one number each (None: the mean); they must sum to 1 unless ``sum_to`` is
    ``normalize`` or ``raw``. Parameters and floating-point buffers (running statistics) become
    the sum, rounded once to their own dtype: the bits that
    ``swavg.average`` and ``load_state_dict`` give where the files have the model's dtypes.
    Integer buffers take the last checkpoint's values. What else the checkpoints hold is
    not looked at.

    Strict: every tensor of the model must be in every checkpoint, in its shape; MismatchError
    names those that are not. Not strict: they keep the model's own value, and their names are
    returned. Either way this is decided before the model is touched.

    A value that is NaN or Inf is refused with NumericsError, as ``swavg average`` does, unless
    ``allow_nonfinite`` is set (or all checkpoints have the same Inf there). That shows only while
    the files are read: the model then holds the average in part, as after an InputError.

    What is no plain weight is refused with MismatchError (codes whose scales are another tensor),
    and what may make the average useless is told as a warning (pruning masks that differ).

    Beside the model this takes some megabytes; for a tensor that is sharded along another
    dimension than its first, the whole of that tensor. In a distributed run every rank calls this
    and reads what it holds itself.
    """
    with ModelPlan(
        model,
        checkpoints,
        strict=strict,
        key=key,
        strip_prefix=strip_prefix,
        allow_nonfinite=allow_nonfinite,
    ) as plan:
        n = len(checkpoints)
        plan.apply(schedules.mean(n) if weights is None else schedules.checked(weights, n, sum_to))
        return plan.kept
