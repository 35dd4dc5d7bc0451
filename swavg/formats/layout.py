"""What a format is asked to write, and what it answers: where every byte of each file goes.

All offsets are known before the first byte. Regions hold tensors; ``fixed`` are bytes that do not
depend on the data; ``deferred`` those that depend on checksums of regions before them. Together
they tile the file.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import ClassVar, Generic, Protocol, TypeVar

from swavg.dtypes import DType
from swavg.errors import InputError, OutputError, quoted
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.tensors import Shape, Shared
from swavg.short_repr import ShortRepr
from swavg.storage.crc import Checksum, RegionChecksum

T = TypeVar("T")


def distinct(values: Iterable[T]) -> tuple[tuple[T, ...], array[int]]:
    """The distinct ``values`` in order of appearance, and for each value which of them it is."""
    places: dict[T, int] = {}
    numbers = array("I", [places.setdefault(value, len(places)) for value in values])
    return tuple(places), numbers


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Specs(ShortRepr):
    """Names, dtypes and shapes of the tensors to write, in columns: ``form`` indexes ``forms``."""

    names: Sequence[str]
    forms: Sequence[tuple[DType, Shape]]
    form: array[int]

    def __len__(self) -> int:
        return len(self.names)

    def at(self, number: int) -> tuple[str, DType, Shape]:
        return self.names[number], *self.forms[self.form[number]]

    @property
    def sizes(self) -> array[int]:
        """Bytes of each tensor."""
        of_form = [dtype.nbytes(math.prod(shape)) for dtype, shape in self.forms]
        return array("q", map(of_form.__getitem__, self.form))


@dataclass(frozen=True, eq=False, slots=True)
class WriteRequest:
    """What is to be written.

    ``recipe`` says how it was made, as text (empty: nobody says). ``ties`` are groups of names that
    are one tensor. ``template`` gives structure and everything that is no tensor; ``unchanged[i]``
    is true for a tensor whose bytes are the template's own, of that name. ``alike``: in all that is
    averaged tensors lie as in the template. ``copies``: it is the template itself in another form,
    of which all holds that its metadata says. ``compute`` makes a file of a few small tensors at
    once, for a format whose layout depends on their values.
    """

    specs: Specs
    recipe: str
    ties: Sequence[tuple[str, ...]]
    template: Checkpoint
    unchanged: bytes
    drop_ties: bool = False
    weights_only: bool = False
    max_shard_size: int | None = None
    alike: bool = False
    copies: bool = False
    compute: Callable[[FileLayout], bytes] | None = None

    @property
    def without_ties(self) -> Sequence[int]:
        """The numbers of the tensors to write where a format cannot express ties: of each group, if
        they are dropped, only the first."""
        numbers = range(len(self.specs))
        if not self.drop_ties:
            return numbers
        aliases = {name for group in self.ties for name in group[1:]}
        return [number for number in numbers if self.specs.names[number] not in aliases]


@dataclass(frozen=True, slots=True)
class Kept:
    """``nbytes`` of a template's ``source`` from ``start`` on, as they are, at ``offset``."""

    offset: int
    start: int
    nbytes: int
    source: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class FileLayout(ShortRepr):
    """One output file, planned to the byte: a picklable value.

    ``name`` is relative to the output folder (empty for a single file), ``size`` bytes. Tensor
    ``tensors[i]`` of ``specs`` begins at ``offsets[i]``, ascending; where it is written in several
    places one after the other, in this file and the next ones, ``parts[i]`` are the elements
    ``[start, stop)`` that lie there. ``kept`` are bytes of the template. ``orders`` gives, by
    number, the axes of a tensor whose elements are written in another order than row-major, slowest
    first. ``bodies`` are bytes at their offsets that depend on no region. ``check`` opens the
    finished file and raises OutputError if it is not what was planned. ``checksum`` is the kind
    that deferred bytes need of each region (None: none).
    """

    name: str
    size: int
    specs: Specs
    tensors: array[int]
    offsets: array[int]
    kept: tuple[Kept, ...] = ()
    orders: Mapping[int, Shape] = field(default_factory=dict)
    bodies: tuple[tuple[int, bytes], ...] = ()
    check: Callable[[str], None] | None = None
    parts: Mapping[int, tuple[int, int]] = field(default_factory=dict)

    checksum: ClassVar[Checksum | None] = None

    def fixed(self) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of what does not depend on the data, ascending."""
        return iter(self.bodies)

    def deferred(self, crc: RegionChecksum) -> Iterator[tuple[int, Callable[[], bytes]]]:
        """Offset and bytes of what follows from checksums, ascending. In a file that can be
        streamed each depends only on regions before it."""
        return iter(())

    def verify(self, path: str) -> None:
        """Open the finished file with the format's reference library, or check it otherwise.
        OutputError if it is not what was planned."""
        if self.check is not None:
            self.check(path)


@contextmanager
def opening(path: str) -> Iterator[None]:
    """OutputError where a finished file does not open."""
    try:
        yield
    except InputError as error:
        raise OutputError(path, f"the finished file does not open: {error.problem}") from error


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class Layout(ShortRepr):
    """The files of one output. ``files`` are small ones made here (an index), ``side_files`` the
    paths to copy beside the weights, by name; ``notes`` say what could not be kept,
    ``warnings`` what stays that should not."""

    layouts: tuple[FileLayout, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    side_files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def losses(request: WriteRequest) -> str:
    """What of the template a plain writer leaves out, in words; empty if it is nothing."""
    extras = request.template.extras
    # At the top level, what is no tensor stands in both.
    others = list(dict.fromkeys((*extras.others, *extras.non_tensors)))
    if not others:
        return ""
    return f"{quoted(others, 5)} of {os.path.basename(request.template.path.rstrip('/'))}"


class Open(Protocol):
    def __call__(
        self, path: str, key: str | None = None, shared: Shared | None = None
    ) -> Checkpoint: ...


@dataclass(frozen=True, slots=True)
class Later(Generic[T]):
    """The function at a ``place`` in this room (``module:name``), imported when it is called: for
    what a format needs where there is such a checkpoint."""

    place: str

    def __call__(self, *args: object, **options: object) -> T:
        module, _, name = self.place.partition(":")
        function: Callable[..., T] = getattr(import_module(f"swavg.formats.{module}"), name)
        return function(*args, **options)


@dataclass(frozen=True, slots=True)
class Format:
    """A row of the table of formats.

    ``recognises`` tells by the first bytes of a file; ``holds`` whether a path that is no such file
    stands for a checkpoint of the format: a folder, one above it, a prefix of names. ``open`` reads
    headers only; ``key`` is the dotted path of the state dict, where a format has one. ``lay_out``
    plans an output (None: it is only read), ``plan_file`` one file of some of the tensors, as a
    shard. ``recipe_in`` reads what swavg wrote of an average (None: the format has no place for
    it), and little else. An output is of the format that its suffix names, else of the template's,
    or ``instead`` where that is not written; ``folder``: it is a folder. ``data``: such a file is
    as often one of data, and counts for that where it lies among weights of other formats.
    ``by_step``: a bare number is the name of a step.
    ``ambiguous`` are suffixes that its own library's users give it, and that name another format.
    """

    name: str
    suffixes: tuple[str, ...]
    recognises: Callable[[bytes], bool]
    open: Open
    lay_out: Callable[[WriteRequest], Layout] | None = None
    plan_file: Callable[[WriteRequest, Sequence[int], str], FileLayout] | None = None
    recipe_in: Callable[[str], str | None] = lambda path: None
    holds: Callable[[str], bool] = lambda path: False
    folder: bool = False
    instead: str = "safetensors"
    data: bool = False
    by_step: bool = False
    ambiguous: tuple[str, ...] = ()
