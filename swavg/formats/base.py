"""What every format gives and takes: specs, extents, opened checkpoints, and output layouts.

Opening a checkpoint finds names, dtypes, shapes and where the bytes lie; no tensor is loaded.
Writing is a :class:`Layout`: all offsets are known before the first byte, and ``frame`` wraps the
tensors' bytes, which arrive in order, in whatever the format puts around them.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from swavg.dtypes import DType
from swavg.errors import InputError

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


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file as it was when it was opened, so that a change under us is noticed."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    def __hash__(self) -> int:
        # Looked up with every read; a string remembers its hash.
        return hash(self.path)

    @classmethod
    def identify(cls, path: str, fd: int | None = None) -> InputFile:
        """Facts of ``path`` (or of the open ``fd``); InputError unless it is a regular file."""
        try:
            facts = os.stat(path) if fd is None else os.fstat(fd)
        except FileNotFoundError:
            raise InputError(path, "no such file") from None
        except ValueError:
            raise InputError(
                path.replace("\0", "\\0"),
                "no file has a NUL byte in its name",
                hint="For paths that are separated by NUL, use --null.",
            ) from None
        except OSError as error:
            raise InputError(path, f"cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(facts.st_mode):
            raise InputError(
                path,
                "not a regular file",
                hint="swavg reads each input at several places at once; write it to a file first.",
            )
        return cls(
            path, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
        )

    def check(self, fd: int | None = None) -> None:
        """Raise InputError if the file is no longer what was opened."""
        if InputFile.identify(self.path, fd) != self:
            raise InputError(
                self.path,
                "changed while it was read",
                hint="Is a training run still writing it? Wait for it to finish, or copy it first.",
            )


@contextmanager
def open_input(path: str) -> Iterator[tuple[int, InputFile]]:
    """Open ``path`` for reading: its descriptor and its identity. Raises InputError."""
    # Opening a FIFO would wait for a writer: look first.
    InputFile.identify(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from None
    try:
        yield fd, InputFile.identify(path, fd)
    finally:
        os.close(fd)


def read_exactly(fd: int, file: InputFile, offset: int, size: int) -> bytearray:
    """``size`` bytes at ``offset``; InputError if the file ends before."""
    data = bytearray(size)
    _fill(fd, file, offset, memoryview(data))
    return data


def _fill(fd: int, file: InputFile, offset: int, target: memoryview) -> None:
    done, size = 0, len(target)
    while done < size:
        try:
            count = os.preadv(fd, [target[done:]], offset + done)
        except OSError as error:
            raise InputError(file.path, f"read error: {error.strerror}") from None
        if count == 0:
            raise InputError(
                file.path,
                f"ends at byte {offset + done}, {size - done} bytes short of its data:"
                " it was cut short while it was read",
            )
        done += count


class FilePool:
    """Reads from many files with few open descriptors; safe to share between threads.

    At most ``limit`` idle files stay open (least recently used are closed first); one more per
    thread may be open while it is read.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._idle: OrderedDict[InputFile, list[int]] = OrderedDict()
        self._open = 0

    def _take(self, file: InputFile) -> int:
        with self._lock:
            fds = self._idle.get(file)
            if fds:
                fd = fds.pop()
                if not fds:
                    del self._idle[file]
                return fd
        return self._opened(file)

    def _give(self, file: InputFile, fd: int) -> None:
        with self._lock:
            self._idle.setdefault(file, []).append(fd)
            self._idle.move_to_end(file)
            self._trim(self._limit)

    def _opened(self, file: InputFile) -> int:
        with self._lock:
            self._trim(self._limit - 1)
        for attempt in (1, 2):
            try:
                fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
                break
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE) and attempt == 1:
                    self.close()
                    continue
                raise InputError(file.path, f"cannot be read: {error.strerror}") from None
        try:
            file.check(fd)
        except BaseException:
            os.close(fd)
            raise
        with self._lock:
            self._open += 1
        return fd

    def _trim(self, limit: int) -> None:
        while self._open > limit and self._idle:
            file, fds = next(iter(self._idle.items()))
            os.close(fds.pop(0))
            self._open -= 1
            if not fds:
                del self._idle[file]

    def read_into(self, file: InputFile, offset: int, target: memoryview) -> None:
        """Fill ``target`` with the bytes at ``offset``; InputError if they are not there."""
        fd = self._take(file)
        try:
            _fill(fd, file, offset, target)
        finally:
            self._give(file, fd)

    def read(self, file: InputFile, offset: int, size: int) -> bytearray:
        """The ``size`` bytes at ``offset``."""
        data = bytearray(size)
        self.read_into(file, offset, memoryview(data))
        return data

    def close(self) -> None:
        """Close the idle files; the pool stays usable."""
        with self._lock:
            self._trim(0)

    def __enter__(self) -> FilePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
