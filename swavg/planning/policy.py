"""What to do with tensors: the choices of a user, all in one value."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from swavg.errors import RequestError

Missing = Literal["keep", "drop", "average"]
Integers = Literal["auto", "last", "first", "max", "mean", "error"]
Lora = Literal["mean", "exact"]
Accumulate = Literal["auto", "float32", "float64"]
Digest = Literal["sampled", "full"]
Floats = Literal["keep", "float32", "float64", "float16", "bfloat16"]

_CHOICES = {"missing": Missing, "integers": Integers, "lora": Lora, "accumulate": Accumulate,
            "dtype": Floats, "digest": Digest}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do with tensors. RequestError for a value that a field does not take."""

    strict: bool = True
    """All inputs must have the same names, shapes and dtypes."""
    missing: Missing = "keep"
    """Not strict: a tensor that some inputs lack, or have in another shape: keep the last one's,
    drop it, or average those that have it, with weights renormalized."""
    include: tuple[str, ...] = ()
    """Globs over names: only these are averaged; the rest is copied from the last checkpoint."""
    exclude: tuple[str, ...] = ()
    """Globs over names: these are not averaged."""
    strip_prefix: tuple[str, ...] = ()
    """Prefixes that names of inputs lose, and those of the output with them."""
    rename: tuple[str, ...] = ()
    """``A=B`` puts B for A wherever A is a part of a name, or several, between dots."""
    drop_excluded: bool = False
    """What is not averaged is left out instead of copied."""
    key: str | None = None
    """The dotted path of the state dict in PyTorch files; None: found."""
    dtype: Floats = "keep"
    """Floats in the output; ``keep``: as in the first input."""
    accumulate: Accumulate = "auto"
    """The dtype of sums; ``auto``: float32 for floats of 8 and 16 bits, else float64."""
    integers: Integers = "auto"
    """What becomes of integer and bool tensors that differ; ``auto``: the last one's of a single
    element (a counter), an error of more."""
    lora: Lora = "mean"
    """Low-rank factors: ``mean`` averages each; ``exact`` averages their products, by factors whose
    rank is the sum of the ranks."""
    drop_ties: bool = False
    """A tied tensor is written once where a format cannot express ties."""
    allow_nonfinite: bool = False
    """Let NaN and Inf through."""
    weights_only: bool = False
    """Write a bare state dict to a PyTorch file."""
    mixed_dtypes: bool = False
    """Floats of different dtypes match even when strict; the output's is ``dtype``, or that of the
    first input."""
    max_shard_size: int | None = None
    """Bytes; makes the output a folder of shards."""
    format: str | None = None
    """The name of the output's format; None: that of its suffix, else of the first input."""
    digest: Digest = "sampled"
    """What the recipe says of the bytes of inputs: a fingerprint of some places, or (``full``) a
    digest of all as well, for which they are read once more."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in get_args(choices):
                raise RequestError(
                    f"{name} is {value!r}; it can be {', '.join(get_args(choices))}."
                )
        for name in ("include", "exclude", "strip_prefix", "rename"):
            if isinstance(getattr(self, name), str):
                kind = "globs" if name.endswith("clude") else "strings"
                raise RequestError(f"{name} is one string; it is a tuple of {kind}.")
        if self.max_shard_size is not None and self.max_shard_size < 1:
            raise RequestError("max_shard_size is a number of bytes, at least 1.")

    @property
    def changed(self) -> dict[str, object]:
        """The fields that are not as they are by default."""
        values = ((each, getattr(self, each.name)) for each in fields(self))
        return {each.name: value for each, value in values if value != each.default}
