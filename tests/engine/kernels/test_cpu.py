"""Sums, to the bit: against NumPy and exact fractions, for one row and several."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_chunks import (
    WIDE,
    bytes_of,
    cpu_kernel,
    mean_of,
    random_chunk,
    reader,
    run,
    uniform,
    weighted,
)
from test_floats import nearest

from swavg.dtypes import BY_NAME
from swavg.engine.kernels.base import Arithmetic, Terms
from swavg.engine.kernels.cpu import CpuKernel, kernel_bytes


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@given(n=st.integers(1, 33), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_equal_inputs_return_themselves_bit_for_bit(dtype, n, seed):
    rng = np.random.default_rng(seed)
    if dtype.name == "float64":
        # Exact as long as the sum has room: 53 bits hold values of up to 47 bits n times.
        chunk = bytes_of(np.float64(rng.standard_normal(64).astype(np.float32)))
    else:
        chunk = random_chunk(rng, dtype, 64)
    out, finite = mean_of([chunk] * n, dtype, 64)
    assert finite
    np.testing.assert_array_equal(out, chunk)


def test_bfloat16_means_are_the_correctly_rounded_means():
    rng = np.random.default_rng(6)
    dtype = BY_NAME["bfloat16"]
    chunks = [bytes_of((rng.standard_normal(4096) * 0.02).astype(dtype.numpy())) for _ in range(4)]
    out, _ = mean_of(chunks, dtype, 4096)
    exact = np.mean([chunk.view(dtype.numpy()).astype(np.float64) for chunk in chunks], axis=0)
    expected = [nearest(value, 8, -133) for value in exact.tolist()]
    np.testing.assert_array_equal(out.view(dtype.numpy()).astype(np.float64), expected)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@given(
    weights=st.lists(st.floats(-2, 2), min_size=2, max_size=5),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=20, deadline=None)
def test_sums_have_the_bits_of_multiplying_and_adding_one_after_the_other(dtype, weights, seed):
    rng = np.random.default_rng(seed)
    chunks = [random_chunk(rng, dtype, 256) for _ in weights]
    rows = (weighted(*weights), uniform(len(weights)))
    arithmetic = Arithmetic((dtype,) * len(weights), rows, dtype.accumulator, dtype)
    wide = BY_NAME[dtype.accumulator].numpy()
    terms = [chunk.view(dtype.numpy()).astype(wide) for chunk in chunks]
    weighted_sum = terms[0] * wide.type(weights[0])
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        weighted_sum = weighted_sum + term * wide.type(weight)
    mean = terms[0]
    for term in terms[1:]:
        mean = mean + term
    mean = mean / wide.type(len(terms))
    outs, finite = run(cpu_kernel(arithmetic, 256), arithmetic, chunks, 256)
    assert finite == [True, True]
    for out, total in zip(outs, (weighted_sum, mean), strict=True):
        np.testing.assert_array_equal(out, bytes_of(total.astype(dtype.numpy())))


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 16, 100])
def test_float16_means_have_the_bits_of_divided_float32_sums_also_where_subnormal(n):
    rng = np.random.default_rng(n)
    half, count = BY_NAME["float16"], 1 << 14
    for scale in (2.0**-24, 2.0**-15, 2.0**-13, 1.0, 30000.0):
        rows = np.clip(rng.standard_normal((n, count)) * scale, -65504, 65504).astype(np.float16)
        # Ties, and both sides of the smallest normal number.
        rows[:, :64] = np.float16(2.0**-14) * np.float16(rng.integers(-2, 3, (n, 64)))
        out, finite = mean_of([bytes_of(row) for row in rows], half, count)
        total = rows[0].astype(np.float32)
        for row in rows[1:]:
            total = total + row.astype(np.float32)
        assert finite
        np.testing.assert_array_equal(out, bytes_of((total / np.float32(n)).astype(np.float16)))


ROWS = (
    uniform(3),
    weighted(0.5, 0.75, -0.25),
    Terms((1, 2), (0.5, 0.5), uniform=True),
    Terms((0, 2), (0.1, 0.9), uniform=False),
    Terms((2,), (1.0,), uniform=True),
)


@pytest.mark.parametrize("accumulator", ["float32", "float64"])
def test_several_rows_have_the_bits_of_each_row_alone(accumulator):
    rng = np.random.default_rng(0)
    inputs = tuple(BY_NAME[name] for name in ("float16", "float32", "bfloat16"))
    chunks = [random_chunk(rng, dtype, 1000) for dtype in inputs]
    together = Arithmetic(inputs, ROWS, accumulator, BY_NAME["bfloat16"])
    outs, finite = run(cpu_kernel(together, 1000), together, chunks, 1000)
    assert all(finite)
    for out, row in zip(outs, ROWS, strict=True):
        alone = Arithmetic(inputs, (row,), accumulator, BY_NAME["bfloat16"])
        expected, _ = run(cpu_kernel(alone, 1000), alone, chunks, 1000)
        np.testing.assert_array_equal(out, expected[0])


def test_each_input_is_read_once_in_order():
    dtype = BY_NAME["float16"]
    reads = []
    chunks = [bytes_of(np.ones(8, np.float16))] * 3

    def read(index, buffer):
        reads.append((index, len(buffer)))
        reader(chunks)(index, buffer)

    arithmetic = Arithmetic((dtype,) * 3, ROWS, "float32", dtype)
    outs = [bytearray(16) for _ in ROWS]
    cpu_kernel(arithmetic, 8).weighted_sums(arithmetic, 8, read, [memoryview(o) for o in outs])
    assert reads == [(0, 16), (1, 16), (2, 16)]


def test_a_row_that_is_not_finite_does_not_spoil_the_others():
    dtype = BY_NAME["float32"]
    chunks = [bytes_of(np.float32([1, value])) for value in (2, np.inf, 4)]
    rows = (Terms((0, 1), (0.5, 0.5), uniform=True), Terms((0, 2), (0.5, 0.5), uniform=True))
    arithmetic = Arithmetic((dtype,) * 3, rows, "float64", dtype)
    outs, finite = run(cpu_kernel(arithmetic, 2), arithmetic, chunks, 2)
    assert finite == [False, True]
    assert outs[1].view(np.float32).tolist() == [1, 3]


def test_a_kernel_of_many_rows_serves_fewer_and_other_sums():
    dtype = BY_NAME["float32"]
    kernel = CpuKernel(8, 4, 8, rows=3)
    chunks = [bytes_of(np.float32([n] * 8)) for n in (1, 2, 6)]
    for row, expected in ((uniform(3), 3), (weighted(1, 1, -0.5), 0), (uniform(2), 1.5)):
        inputs = (dtype,) * len(row.positions)
        outs, _ = run(kernel, Arithmetic(inputs, (row,), "float64", dtype), chunks, 8)
        assert outs[0].view(np.float32).tolist() == [expected] * 8


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("output", ["float8_e4m3fn", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("source", ["float8_e5m2", "float16", "float32"])
@pytest.mark.parametrize("accumulator", ["float32", "float64"])
def test_a_kernel_takes_no_more_memory_than_it_says(source, output, accumulator, rows):
    source, output, count = BY_NAME[source], BY_NAME[output], 1 << 18
    sizes = count, source.itemsize, BY_NAME[accumulator].itemsize, rows
    arithmetic = Arithmetic((source,) * 3, ROWS[:rows], accumulator, output)
    outs = [memoryview(bytearray(output.nbytes(count))) for _ in range(rows)]
    zeros = bytes(source.nbytes(count))

    def read(index, buffer):
        buffer[:] = zeros

    run_once = CpuKernel(*sizes)  # Tables are made once.
    run_once.weighted_sums(arithmetic, count, read, outs)
    tracemalloc.start()
    kernel = CpuKernel(*sizes)
    held = tracemalloc.get_traced_memory()[0]
    kernel.weighted_sums(arithmetic, count, read, outs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held <= peak <= kernel_bytes(*sizes) + 8192
    kernel.close()
