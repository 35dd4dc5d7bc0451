"""What to do with tensors: the choices of a user, all in one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from swavg.errors import RequestError

Missing = Literal["keep", "drop", "average"]
Integers = Literal["last", "first", "max", "mean", "error"]
Accumulate = Literal["auto", "float32", "float64"]
Floats = Literal["keep", "float32", "float64", "float16", "bfloat16"]

_CHOICES = {"missing": Missing, "integers": Integers, "accumulate": Accumulate, "dtype": Floats}


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do with tensors, all in one value.

    ``strict``: all inputs must have the same names, shapes and dtypes. Otherwise ``missing`` says
    what happens to a tensor that some lack (or have in another shape): ``keep`` the last
    checkpoint's, ``drop`` it, or ``average`` those that have it, with weights renormalized.
    ``include`` and ``exclude`` are globs over names: what is averaged; the rest is copied from the
    last checkpoint, or dropped with ``drop_excluded``. ``dtype`` of the floats in the output
    (``keep``: as in the first input); ``accumulate`` the dtype of sums (``auto``: float32 for
    floats of 8 and 16 bits, else float64). ``integers`` decides for integer and bool tensors that
    differ. ``drop_ties`` writes a tied tensor once where a format cannot express ties.
    ``allow_nonfinite`` lets NaN and Inf through. ``weights_only`` writes a bare state dict.
    ``mixed_dtypes`` lets floats of different dtypes match even when strict (a float32 average and
    the bfloat16 checkpoint that is added to it). ``max_shard_size`` in bytes makes the output a
    folder of shards. ``pool_batch_norm`` makes running variances those of a mixture of the inputs
    (see :mod:`swavg.kernels.pooling`). ``key`` is the dotted path of
    the state dict in PyTorch files.
    """

    strict: bool = True
    missing: Missing = "keep"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    drop_excluded: bool = False
    key: str | None = None
    dtype: Floats = "keep"
    accumulate: Accumulate = "auto"
    integers: Integers = "last"
    drop_ties: bool = False
    allow_nonfinite: bool = False
    weights_only: bool = False
    max_shard_size: int | None = None
    mixed_dtypes: bool = False
    pool_batch_norm: bool = False

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in get_args(choices):
                raise RequestError(
                    f"{name} is {value!r}; it can be {', '.join(get_args(choices))}."
                )
        for name in ("include", "exclude"):
            if isinstance(getattr(self, name), str):
                raise RequestError(f"{name} is one string; it is a tuple of globs.")
        if self.max_shard_size is not None and self.max_shard_size < 1:
            raise RequestError("max_shard_size is a number of bytes, at least 1.")
