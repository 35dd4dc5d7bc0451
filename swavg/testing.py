"""What every format must do, as tests to inherit: for the formats of swavg and for yours.

Subclass :class:`FormatTests` in a file of tests, say how the *reference* library writes and reads
a file, and pytest runs them all::

    from swavg.testing import FormatTests

    class TestMine(FormatTests):
        format = FORMATS["mine"]
        suffix = ".mine"
        dtypes = ("float32", "int64")

        def write(self, path, tensors):
            mine.save(path, tensors)

        def read(self, path):
            return mine.load(path)

What a format cannot do is named in ``lacks``, with the reason, and shown as skipped.
"""

from __future__ import annotations

import random
import shutil
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from swavg.dtypes import BY_NAME, DType
from swavg.engine.average import average, execute, prepare
from swavg.engine.resources import Resources
from swavg.engine.workers import start
from swavg.errors import InputError, OutputError
from swavg.formats import open_checkpoint
from swavg.formats.checkpoint import Checkpoint
from swavg.formats.layout import Format
from swavg.planning.plan import Plan
from swavg.planning.row import Row
from swavg.storage.pool import Pool
from swavg.weights import mean

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]
Ability = Literal["extras", "golden", "order", "strides", "ties"]

DTYPES = tuple(
    dtype.name for dtype in BY_NAME.values() if dtype.bits >= 8 and dtype.numpy_name is not None
)
"""All dtypes that NumPy, with ml_dtypes, has an element for."""

NAMES = ("w", "", ".", "../x", "a b", "ä", "層.重み", "😀", 'quo"te', "back\\slash", "tab\t\x7f\n")
"""Names that a format should take as they are."""

GOLDEN: Tensors = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "n": np.array(7, dtype=np.int64),
}
"""What the file of :attr:`FormatTests.golden` holds."""


class FormatTests:
    """Tests of one format. ``tensors`` map names to arrays; two names may have the same array,
    which then are one tensor (a tie)."""

    format: ClassVar[Format]
    """Its row of the table."""
    suffix: ClassVar[str]
    """Of its files; empty for folders."""
    dtypes: ClassVar[Sequence[str]] = DTYPES
    """The names of those that it holds."""
    names: ClassVar[Sequence[str]] = NAMES
    lacks: ClassVar[Mapping[Ability, str]] = {}
    """What the format cannot do, with the reason."""
    golden: ClassVar[bytes | Mapping[str, bytes] | None] = None
    """A file (of a folder: the files by name) that holds :data:`GOLDEN`, as a literal."""

    def write(self, path: Path, tensors: Tensors) -> None:
        """A file, or a folder, of these tensors, by the reference library."""
        raise NotImplementedError

    def read(self, path: Path) -> dict[str, Array]:
        """The tensors as the reference library reads them, in its order."""
        raise NotImplementedError

    def write_extras(self, path: Path, tensors: Tensors, number: int) -> None:
        """As :meth:`write`, with something besides tensors that depends on ``number``."""
        raise NotImplementedError

    def read_extras(self, path: Path) -> object:
        """What :meth:`write_extras` put there, as a value that can be compared."""
        raise NotImplementedError

    # Reading.

    def test_every_dtype_is_read(self, tmp_path: Path) -> None:
        tensors = {f"{name}.{at}": array for name in self.dtypes for at, array in shapes(name)}
        assert_holds(self._opened(tmp_path, tensors), tensors)

    def test_names_of_any_kind_are_read(self, tmp_path: Path) -> None:
        tensors = {name: ramp(self.dtypes[0], 1 + at) for at, name in enumerate(self.names)}
        assert_holds(self._opened(tmp_path, tensors), tensors)

    def test_the_order_of_names_is_kept(self, tmp_path: Path) -> None:
        self._needs("order")
        tensors = {name: ramp(self.dtypes[0], 3) for name in ("z", "a", "m", "b")}
        assert list(self._opened(tmp_path, tensors)) == list(tensors)

    def test_strided_tensors_are_read(self, tmp_path: Path) -> None:
        self._needs("strides")
        whole = ramp(self.dtypes[0], 60).reshape(3, 4, 5)
        tensors = {"turned": whole.T, "swapped": whole.swapaxes(0, 1), "cut": whole[:, 1:3, ::2]}
        assert_holds(self._opened(tmp_path, tensors), tensors)

    def test_ties_are_found(self, tmp_path: Path) -> None:
        self._needs("ties")
        one = ramp(self.dtypes[0], 6)
        checkpoint = self._opened(tmp_path, {"a": one, "b": one, "c": one.copy()})
        assert checkpoint.ties == (("a", "b"),)

    def test_any_range_is_read_as_the_reference_reads_it(self, tmp_path: Path) -> None:
        chance = random.Random(0)
        tensors = {name: ramp(name, 120).reshape(6, 20) for name in self.dtypes}
        checkpoint = self._opened(tmp_path, tensors)
        reference = self.read(self._path(tmp_path))
        with Pool() as pool:
            for name, array in reference.items():
                for _ in range(20):
                    begin, end = sorted(chance.choices(range(array.size + 1), k=2))
                    out = bytearray((end - begin) * array.itemsize)
                    checkpoint.read_into(
                        checkpoint.tensors[name], begin, end, memoryview(out), pool
                    )
                    assert out == array.reshape(-1)[begin:end].tobytes(), (name, begin, end)
                assert_equal(name, checkpoint[name][2:5], array[2:5])

    def test_a_known_file_is_read(self, tmp_path: Path) -> None:
        self._needs("golden")
        path = self._path(tmp_path)
        if isinstance(self.golden, bytes):
            path.write_bytes(self.golden)
        else:
            path.mkdir()
            for name, data in (self.golden or {}).items():
                (path / name).write_bytes(data)
        assert_holds(open_checkpoint(path), GOLDEN)
        assert_same(self.read(path), GOLDEN)

    def test_it_is_known_by_its_bytes(self, tmp_path: Path) -> None:
        checkpoint = self._opened(tmp_path, {"w": ramp(self.dtypes[0], 4)})
        assert checkpoint.format == self.format.name
        if not self._path(tmp_path).is_dir():
            other = tmp_path / "of-another-suffix.xyz"
            shutil.copy(self._path(tmp_path), other)
            assert open_checkpoint(other).format == self.format.name

    # Damage.

    def test_a_file_that_is_cut_short_anywhere_is_refused(self, tmp_path: Path) -> None:
        for file, data in self._small(tmp_path):
            for size in range(len(data)):
                file.write_bytes(data[:size])
                assert _refused(self._path(tmp_path)), f"{file.name} of {size} bytes was read"
            file.write_bytes(data)

    def test_bytes_behind_the_end_are_refused_or_do_no_harm(self, tmp_path: Path) -> None:
        for file, data in self._small(tmp_path):
            file.write_bytes(data + b"more")
            _refused(self._path(tmp_path))
            file.write_bytes(data)

    def test_a_flipped_byte_never_does_worse_than_other_values(self, tmp_path: Path) -> None:
        for file, data in self._small(tmp_path):
            for at in range(len(data)):
                damaged = bytearray(data)
                damaged[at] ^= (0x01, 0x80, 0xFF)[at % 3]
                file.write_bytes(damaged)
                _refused(self._path(tmp_path))
            file.write_bytes(data)

    # Writing.

    def test_every_dtype_comes_back(self, tmp_path: Path) -> None:
        tensors = {f"{name}.{at}": array for name in self.dtypes for at, array in shapes(name)}
        self.write(self._path(tmp_path), tensors)
        assert_same(self._averaged(tmp_path, 2), tensors)

    def test_names_of_any_kind_come_back(self, tmp_path: Path) -> None:
        tensors = {name: ramp(self.dtypes[0], 1 + at) for at, name in enumerate(self.names)}
        self.write(self._path(tmp_path), tensors)
        assert_same(self._averaged(tmp_path), tensors)

    def test_the_order_of_names_comes_back(self, tmp_path: Path) -> None:
        self._needs("order")
        tensors = {name: ramp(self.dtypes[0], 3) for name in ("z", "a", "m", "b")}
        self.write(self._path(tmp_path), tensors)
        assert list(self._averaged(tmp_path)) == list(tensors)

    def test_strided_tensors_come_back(self, tmp_path: Path) -> None:
        self._needs("strides")
        whole = ramp(self.dtypes[0], 60).reshape(3, 4, 5)
        tensors = {"turned": whole.T, "swapped": whole.copy().swapaxes(0, 1)}
        self.write(self._path(tmp_path), tensors)
        assert_same(self._averaged(tmp_path, 2), tensors)

    def test_ties_come_back(self, tmp_path: Path) -> None:
        self._needs("ties")
        one = ramp(self.dtypes[0], 6)
        self.write(self._path(tmp_path), {"a": one, "b": one})
        assert_same(self._averaged(tmp_path, 2), {"a": one, "b": one})
        assert open_checkpoint(self._out(tmp_path)).ties == (("a", "b"),)

    def test_what_is_no_tensor_is_kept_of_the_last(self, tmp_path: Path) -> None:
        self._needs("extras")
        paths = [self._path(tmp_path, str(number)) for number in range(2)]
        for number, path in enumerate(paths):
            self.write_extras(path, {"w": ramp(self.dtypes[0], 6)}, number)
        average(paths, output=self._out(tmp_path))
        kept = self.read_extras(self._out(tmp_path))
        assert kept == self.read_extras(paths[1])
        assert kept != self.read_extras(paths[0])

    def test_averages_equal_the_oracle(self, tmp_path: Path) -> None:
        floats = [name for name in self.dtypes if BY_NAME[name].floating]
        paths = [self._path(tmp_path, str(seed)) for seed in range(3)]
        states = [{name: noise(name, 50, seed) for name in floats} for seed in range(3)]
        for path, tensors in zip(paths, states, strict=True):
            self.write(path, tensors)
        for weights in (None, (0.5, 0.3, 0.2), (1.5, -0.75, 0.25)):
            average(paths, weights, output=self._out(tmp_path), force=True)
            found = self.read(self._out(tmp_path))
            for name in floats:
                expected = oracle(BY_NAME[name], [state[name] for state in states], weights)
                assert_equal(f"{name} {weights}", found[name], expected)

    def test_the_same_call_gives_the_same_bytes(self, tmp_path: Path) -> None:
        self.write(self._path(tmp_path), {"w": ramp(self.dtypes[0], 40), "e": ramp("int64", 3)})
        made = []
        for workers in (1, 3):
            average([self._path(tmp_path)] * 2, output=self._out(tmp_path), force=True,
                    resources=Resources(threads=workers))  # fmt: skip
            made.append({file.name: data for file, data in files_of(self._out(tmp_path))})
        assert made[0] == made[1]

    def test_verify_notices_another_file(self, tmp_path: Path) -> None:
        for name, key in (("one", "w"), ("two", "v")):
            self.write(self._path(tmp_path, name), {key: ramp(self.dtypes[0], 6)})
        plans = [self._plan(tmp_path, [self._path(tmp_path, name)]) for name in ("one", "two")]
        for plan, other in zip(plans, reversed(plans), strict=True):
            execute(plan)
            for file in plan.outputs[0].files:
                path = self._out(tmp_path) / file.layout.name
                file.layout.verify(str(path))
                self._notices(other.outputs[0].files[0].layout.verify, path)
                path.write_bytes(path.read_bytes()[:-1])
                self._notices(file.layout.verify, path)

    def test_memory_does_not_grow_with_the_tensors(self, tmp_path: Path) -> None:
        large = np.zeros(12 << 20, np.float32)
        self.write(self._path(tmp_path), {"w": large})
        plan = self._plan(tmp_path, [self._path(tmp_path)] * 3)
        run = Resources(threads=1)
        _, _, sizes = start(plan, run)
        tracemalloc.start()
        try:
            execute(plan, run)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < sizes.memory + (4 << 20) < large.nbytes

    # What the tests share.

    def _needs(self, ability: Ability) -> None:
        if ability in self.lacks:
            import pytest

            pytest.skip(self.lacks[ability])

    def _path(self, folder: Path, name: str = "in") -> Path:
        return folder / f"{name}{self.suffix}"

    def _out(self, folder: Path) -> Path:
        return self._path(folder, "out")

    def _opened(self, folder: Path, tensors: Tensors) -> Checkpoint:
        self.write(self._path(folder), tensors)
        return open_checkpoint(self._path(folder))

    def _averaged(self, folder: Path, count: int = 1) -> dict[str, Array]:
        """Equal checkpoints return themselves."""
        average([self._path(folder)] * count, output=self._out(folder))
        return self.read(self._out(folder))

    def _plan(self, folder: Path, inputs: Sequence[Path]) -> Plan:
        row = Row(mean(len(inputs)), tuple(range(len(inputs))))
        return prepare(inputs, [row], [self._out(folder)], force=True, distances=False)

    def _small(self, folder: Path) -> Iterator[tuple[Path, bytes]]:
        self.write(self._path(folder), {"w": ramp(self.dtypes[0], 3), "b": ramp("int64", 1)})
        yield from files_of(self._path(folder))

    @staticmethod
    def _notices(verify: Callable[[str], None], path: Path) -> None:
        try:
            verify(str(path))
        except OutputError:
            return
        raise AssertionError(f"{path} was taken for the file that was planned")


def files_of(path: Path) -> list[tuple[Path, bytes]]:
    """The file, or the files of a folder, with their bytes."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [(file, file.read_bytes()) for file in files]


def ramp(name: str, count: int) -> Array:
    """Elements of a dtype that are all finite, and different where it has so many."""
    dtype = BY_NAME[name]
    values: Array = np.arange(count)
    if dtype.kind == "bool":
        values = values % 3 == 0
    elif dtype.kind == "complex":
        values = values - 1j * values
    elif dtype.kind == "integer":
        values = values % 100
    else:
        values = (1 + values % 12) / 4
    return values.astype(dtype.numpy())


def noise(name: str, count: int, seed: int) -> Array:
    """Random elements of a floating dtype, in [0.5, 1.5)."""
    chance, dtype = np.random.default_rng(seed), BY_NAME[name]
    values: Array = 0.5 + chance.random(count)
    if dtype.kind == "complex":
        values = values + 1j * chance.random(count)
    return values.astype(dtype.numpy())


def shapes(name: str) -> Iterator[tuple[str, Array]]:
    """Arrays of a dtype: plain, a scalar, empty, and of dimensions of one element."""
    yield "plain", ramp(name, 6).reshape(2, 3)
    yield "scalar", ramp(name, 1).reshape(())
    yield "empty", ramp(name, 0).reshape(0, 4)
    yield "thin", ramp(name, 5).reshape(1, 5, 1)


def oracle(dtype: DType, arrays: Sequence[Array], weights: Sequence[float] | None) -> Array:
    """The rule: convert to the accumulator, multiply, add in the order of the inputs, round once,
    last; a mean adds first and divides once."""
    if dtype.kind == "complex":
        part = dtype.part
        real, imaginary = (
            oracle(part, [pick(array) for array in arrays], weights) for pick in (np.real, np.imag)
        )
        return (real + 1j * imaginary).astype(dtype.numpy())
    wide = np.dtype(dtype.accumulator).type
    factors = weights or [1.0] * len(arrays)
    total = np.zeros(arrays[0].shape, wide)
    for factor, array in zip(factors, arrays, strict=True):
        total = total + wide(factor) * array.astype(wide)
    if weights is None:
        total = total / wide(len(arrays))
    return total.astype(dtype.numpy())


def assert_equal(name: str, found: Array, expected: Array) -> None:
    """Dtype, shape and every bit."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
    assert found.tobytes() == expected.tobytes(), f"{name}: {found} is not {expected}"


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert_equal(name, found[name], array)


def assert_holds(checkpoint: Checkpoint, expected: Tensors) -> None:
    assert_same({name: checkpoint.read(name) for name in checkpoint}, expected)


def _refused(path: Path) -> bool:
    """Whether a file is refused, when it is opened or read; InputError is the only way."""
    try:
        checkpoint = open_checkpoint(path)
        for name in checkpoint:
            if checkpoint[name].tensor.spec.nbytes < 1 << 20:
                checkpoint.read(name)
    except InputError:
        return True
    return False
