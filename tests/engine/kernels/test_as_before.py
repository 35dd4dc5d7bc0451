"""Every bit as the kernels gave it before: to be deleted with swavg/kernels."""

import itertools

import ml_dtypes
import numpy as np
import pytest
from kernel_chunks import FLOATS, bytes_of, random_chunk

import swavg.kernels.base as old_base
import swavg.kernels.cpu as old_cpu
import swavg.kernels.repair as old_repair
from swavg.dtypes import BY_NAME
from swavg.engine.kernels.base import Arithmetic, Terms
from swavg.engine.kernels.cpu import CpuKernel
from swavg.engine.kernels.repair import repair
from swavg.engine.kernels.torch import TorchKernel

COUNT = 20_001
WEIGHTS = {
    "uniform": (None, None, None),
    "weighted": ((0.2, 0.5, 0.3), (0.1, 0.9), (1.0,)),
    "negative": ((1.5, -0.75, 0.25), (-0.1, 1.1), (-1.0,)),
}
POSITIONS = ((0, 1, 2), (1, 2), (2,))


def special(rng, dtype, count, output):
    """Random values with zeros of both signs, subnormals and the largest numbers among them."""
    chunk = random_chunk(rng, dtype, count, output)
    unit = chunk.view(f"u{dtype.itemsize}")
    if dtype.name.endswith(("e8m0fnu", "fnuz")):
        return chunk  # No zeros of both signs there.
    sign = 1 << dtype.bits - 1
    codes = np.arange(64, dtype=unit.dtype)
    unit[:128] = rng.permutation(np.concatenate([codes, codes | sign]))
    if dtype.bits > 8:
        largest = min(float(ml_dtypes.finfo(each.numpy()).max) for each in (dtype, output))
        chunk.view(dtype.numpy())[200:208] = largest / 4
    return chunk


def before(arithmetic, terms, chunks, count):
    inputs = tuple(arithmetic.inputs[position] for position in terms.positions)
    old = old_base.Arithmetic(
        inputs, terms.weights, terms.uniform, arithmetic.accumulator, arithmetic.output
    )

    def read(index, target):
        target[:] = chunks[terms.positions[index]].data

    out = np.zeros(arithmetic.output.nbytes(count), np.uint8)
    finite = old_cpu.CpuKernel(count).weighted_sum(old, count, read, out.data)
    repaired = out.copy()
    trouble = None
    if not finite:
        trouble = old_repair.repair(old, count, read, repaired.data)
    return finite, out, repaired, trouble


def compare(arithmetic, chunks, count):
    def read(index, target):
        target[:] = chunks[index].data

    rows = len(arithmetic.rows)
    outs = [np.zeros(arithmetic.output.nbytes(count), np.uint8) for _ in range(rows)]
    finite = CpuKernel(count, 8, 8, rows).weighted_sums(
        arithmetic, count, read, [out.data for out in outs]
    )
    for terms, good, out in zip(arithmetic.rows, finite, outs, strict=True):
        old_good, old_out, old_repaired, old_trouble = before(arithmetic, terms, chunks, count)
        assert good == old_good
        if good:
            np.testing.assert_array_equal(out, old_out)
            continue
        trouble = repair(arithmetic, terms, count, read, out.data)
        np.testing.assert_array_equal(out, old_repaired)
        assert (trouble is None) == (old_trouble is None)
        if trouble is not None:
            assert (trouble.index, trouble.kept) == (old_trouble.index, old_trouble.kept)
            np.testing.assert_equal(trouble.value, old_trouble.value)
            expected = [(terms.positions[at], value) for at, value in old_trouble.inputs]
            np.testing.assert_equal(trouble.inputs, expected)
    return finite


@pytest.mark.parametrize("output", FLOATS, ids=str)
@pytest.mark.parametrize("source", FLOATS, ids=str)
def test_all_dtypes_weights_and_numbers_of_rows(source, output):
    rng = np.random.default_rng(FLOATS.index(source) * 100 + FLOATS.index(output))
    good = 0
    for accumulator, kind in itertools.product(("float32", "float64"), WEIGHTS):
        chunks = [special(rng, source, COUNT, output) for _ in range(3)]
        rows = tuple(
            Terms(where, weights or (1 / len(where),) * len(where), weights is None)
            for where, weights in zip(POSITIONS, WEIGHTS[kind], strict=True)
        )
        for number in (1, 2, 3):
            good += sum(
                compare(
                    Arithmetic((source,) * 3, rows[:number], accumulator, output), chunks, COUNT
                )
            )
    assert good or "e8m0" in source.name + output.name


@pytest.mark.parametrize("accumulator", ["float32", "float64"])
@pytest.mark.parametrize("output", FLOATS, ids=str)
def test_inputs_of_different_dtypes_and_rows_of_different_kinds(output, accumulator):
    rng = np.random.default_rng(1)
    names = ("float32", "bfloat16", "float16", "float8_e4m3fn", "float64")
    inputs = tuple(BY_NAME[name] for name in names)
    chunks = [random_chunk(rng, dtype, COUNT, output) for dtype in inputs]
    rows = (
        Terms((0, 1, 2, 3, 4), (0.2,) * 5, True),
        Terms((1, 2, 3), (0.2, 0.2, 0.6), False),
        Terms((1, 4), (0.5, 0.5), True),
        Terms((3,), (1.0,), True),
        Terms((4,), (1.0,), False),
    )
    for some in (rows, *((row,) for row in rows[:1])):
        compare(Arithmetic(inputs, some, accumulator, output), chunks, COUNT)


@pytest.mark.parametrize("dtype", [d for d in FLOATS if d.bits > 8], ids=str)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_repaired_as_before(dtype, value):
    rng = np.random.default_rng(2)
    for everywhere, uniform in itertools.product((True, False), repeat=2):
        chunks = [random_chunk(rng, dtype, 64) for _ in range(3)]
        for chunk in chunks if everywhere else chunks[1:2]:
            chunk.view(dtype.numpy())[[3, 40]] = value
        rows = (
            Terms((0, 1, 2), (1 / 3,) * 3 if uniform else (0.5, 0.75, -0.25), uniform),
            Terms((0, 2), (0.5, 0.25), uniform),
            Terms((1,), (1.0,), uniform),
        )
        finite = compare(Arithmetic((dtype,) * 3, rows, dtype.accumulator, dtype), chunks, 64)
        assert finite == [False, not everywhere, False]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_random_bits_of_all_floats():
    rng = np.random.default_rng(3)
    for dtype, output in itertools.product(FLOATS, repeat=2):
        chunks = [
            bytes_of(rng.integers(0, 256, dtype.nbytes(512), dtype=np.uint8)) for _ in range(3)
        ]
        rows = (Terms((0, 1, 2), (1 / 3,) * 3, True), Terms((0, 2), (0.25, 0.75), False))
        compare(Arithmetic((dtype,) * 3, rows, dtype.accumulator, output), chunks, 512)


def test_the_torch_kernel_too():
    rng = np.random.default_rng(4)
    half = BY_NAME["float16"]
    chunks = [random_chunk(rng, half, COUNT) for _ in range(2)]
    terms = Terms((0, 1), (0.5, 0.5), True)
    arithmetic = Arithmetic((half,) * 2, (terms,), "float32", half)
    out = np.zeros(2 * COUNT, np.uint8)

    def read(index, target):
        target[:] = chunks[index].data

    TorchKernel(COUNT, 2, 4, 1, "cpu").weighted_sums(arithmetic, COUNT, read, [out.data])
    np.testing.assert_array_equal(out, before(arithmetic, terms, chunks, COUNT)[1])
