"""What every format gives and takes: specs, extents, opened checkpoints, and output layouts.

Opening a checkpoint finds names, dtypes, shapes and where the bytes lie; no tensor is loaded.
Writing is a :class:`Layout`: all offsets are known before the first byte, and ``frame`` wraps the
tensors' bytes, which arrive in order, in whatever the format puts around them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from swavg.dtypes import DType
from swavg.formats.files import InputFile

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape (elements per dimension; ``()`` is a scalar) of a tensor."""

    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed tensor in row-major order."""
        return self.dtype.nbytes(self.numel)


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a tensor's bytes lie: ``file`` indexes the checkpoint's files, ``offset`` and
    ``nbytes`` are bytes in that file. ``strides`` (elements per step of each dimension) is None
    for the row-major order; otherwise the extent is the hull of the strided view."""

    file: int
    offset: int
    nbytes: int
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a checkpoint: what it is and where it lies."""

    spec: TensorSpec
    extent: Extent


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint: facts and offsets only.

    ``tensors`` maps names to :class:`Tensor`, in the order of the file. ``metadata`` are the
    strings of a safetensors header. ``notes`` are things its user should know (another state dict
    that was not chosen, say). Formats subclass this to keep what their writer needs of a template.
    """

    path: str
    files: tuple[InputFile, ...]
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    format = "none"

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Name, dtype and shape of every tensor, by name."""
        return {name: tensor.spec for name, tensor in self.tensors.items()}

    @property
    def size(self) -> int:
        """Bytes of all files of the checkpoint."""
        return sum(file.size for file in self.files)

    @property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Groups of two or more names that are one tensor: same bytes, dtype, shape and strides."""
        groups: dict[tuple[object, ...], list[str]] = {}
        for name, tensor in self.tensors.items():
            if tensor.spec.numel:
                key = (tensor.extent, tensor.spec.dtype.name, tensor.spec.shape)
                groups.setdefault(key, []).append(name)
        return tuple(tuple(names) for names in groups.values() if len(names) > 1)

    def keys(self) -> Iterable[str]:
        return self.tensors.keys()

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __getitem__(self, name: str) -> LazyTensor:
        """The tensor ``name``, not yet read; KeyError if there is none."""
        return LazyTensor(self, self.tensors[name])

    def read(self, name: str) -> Any:
        """The whole tensor ``name`` as a NumPy array of its shape."""
        return self[name][...]


@dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor of an opened checkpoint; ``tensor[...]`` reads it, ``tensor[a:b]`` only those rows.

    The result is a NumPy array (ml_dtypes for the dtypes that NumPy lacks). A slice along the
    first dimension reads only its own bytes; any further indices are applied after reading.
    """

    checkpoint: Checkpoint
    tensor: Tensor

    @property
    def name(self) -> str:
        return self.tensor.spec.name

    @property
    def dtype(self) -> DType:
        return self.tensor.spec.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.spec.shape

    def __getitem__(self, index: Any) -> Any:
        from swavg.formats.read import read_rows

        return read_rows(self.checkpoint, self.tensor, index)


TaskKind = Literal["average", "integer", "copy", "pooled"]


@dataclass(frozen=True, slots=True)
class Task:
    """Bytes of the output: ``shape`` elements of ``dtype`` in row-major order.

    ``kind`` is ``average`` (a weighted sum of floats), ``integer`` (the policy for integers),
    ``copy`` (bytes of the one source) or ``pooled`` (the variance of a mixture: of all inputs the
    variances, then of all the means). ``inputs`` are indices of checkpoints, in order; ``sources``
    and ``weights`` belong to them one to one. ``uniform`` means the mean: add, then divide by the
    number of inputs. A source may have another dtype than the output, and other strides; its
    shape is the task's.
    """

    name: str
    kind: TaskKind
    dtype: DType
    shape: tuple[int, ...]
    inputs: tuple[int, ...]
    sources: tuple[Tensor, ...]
    weights: tuple[float, ...] = (1.0,)
    uniform: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.dtype.nbytes(self.numel)

    @property
    def parts(self) -> int:
        """Real numbers per element: 2 for complex dtypes."""
        return 2 if self.dtype.kind == "complex" else 1


def copy_of_bytes(input: int, file: int, offset: int, nbytes: int) -> Task:
    """A task that copies raw bytes which belong to no averaged tensor."""
    from swavg.dtypes import BY_NAME

    spec = TensorSpec("", BY_NAME["uint8"], (nbytes,))
    source = Tensor(spec, Extent(file, offset, nbytes))
    return Task("", "copy", spec.dtype, spec.shape, (input,), (source,))


@dataclass(frozen=True)
class Layout:
    """One output file, planned to the byte: a plain picklable value.

    ``name`` is relative to the output folder (empty for a single file). ``tasks`` are in the order
    of the file; ``size`` is the file's size in bytes. ``joined`` says that the bytes of successive
    tasks follow each other directly, behind a header and to the end, so that a chunk may span
    several.
    """

    name: str
    size: int
    tasks: tuple[Task, ...]

    format = "none"
    joined = False

    def frame(self, chunks: Iterator[memoryview]) -> Iterator[Buffer]:
        """The bytes of the file in order, given the bytes of the tasks in order.

        A buffer is valid until the next one is asked for.
        """
        raise NotImplementedError

    def verify(self, path: str) -> None:
        """Open the finished file with the format's reference library, or check it otherwise."""
