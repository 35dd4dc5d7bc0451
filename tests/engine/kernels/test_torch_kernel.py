"""The torch kernel gives the NumPy kernel's bits, on the processor and on a GPU."""

import numpy as np
import pytest
import torch
from kernel_chunks import FLOATS, bytes_of, cpu_kernel, random_chunk, reader, run, uniform, weighted

from swavg.dtypes import BY_NAME
from swavg.engine.kernels.base import Arithmetic, Terms
from swavg.engine.kernels.torch import TorchKernel, check_device
from swavg.errors import RequestError

ROWS = (
    uniform(3),
    weighted(0.2, 0.9, -0.1),
    Terms((1, 2), (0.5, 0.5), uniform=True),
    Terms((0, 2), (0.1, 0.9), uniform=False),
)


DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def torch_kernel(request):
    def make(arithmetic, count):
        return TorchKernel(count, 8, 8, len(arithmetic.rows), request.param)

    return make


@pytest.mark.parametrize("output", FLOATS, ids=str)
@pytest.mark.parametrize("source", FLOATS, ids=str)
def test_bits_are_those_of_the_numpy_kernel(torch_kernel, source, output):
    rng = np.random.default_rng(4)
    count, compared = 1000, 0
    for accumulator in ("float32", "float64"):
        for rows in (*((row,) for row in ROWS), ROWS):
            chunks = [random_chunk(rng, source, count, output) for _ in range(3)]
            inputs = (source,) * (1 + max(max(row.positions) for row in rows))
            if len({position for row in rows for position in row.positions}) < len(inputs):
                continue
            arithmetic = Arithmetic(inputs, rows, accumulator, output)
            ours, finite = run(cpu_kernel(arithmetic, count), arithmetic, chunks, count)
            theirs, agreed = run(torch_kernel(arithmetic, count), arithmetic, chunks, count)
            assert finite == agreed
            for our, their, good in zip(ours, theirs, finite, strict=True):
                if good:
                    np.testing.assert_array_equal(our, their)
                    compared += 1
    assert compared or "e8m0" in source.name + output.name


def test_it_divides_as_numpy_does_for_every_number_of_inputs(torch_kernel):
    rng = np.random.default_rng(5)
    dtype = BY_NAME["float32"]
    for n in (3, 7, 10, 49):
        chunks = [bytes_of(rng.standard_normal(512).astype(np.float32)) for _ in range(n)]
        arithmetic = Arithmetic((dtype,) * n, (uniform(n),), "float32", dtype)
        ours, _ = run(cpu_kernel(arithmetic, 512), arithmetic, chunks, 512)
        theirs, _ = run(torch_kernel(arithmetic, 512), arithmetic, chunks, 512)
        np.testing.assert_array_equal(ours, theirs)
        expected = np.sum([chunk.view(np.float32) for chunk in chunks], axis=0) / np.float32(n)
        np.testing.assert_allclose(ours[0].view(np.float32), expected, rtol=1e-5)


def test_each_input_is_read_once_for_all_rows(torch_kernel):
    dtype = BY_NAME["float16"]
    reads = []
    chunks = [bytes_of(np.ones(8, np.float16))] * 3

    def read(index, buffer):
        reads.append(index)
        reader(chunks)(index, buffer)

    arithmetic = Arithmetic((dtype,) * 3, ROWS, "float32", dtype)
    outs = [memoryview(bytearray(16)) for _ in ROWS]
    torch_kernel(arithmetic, 8).weighted_sums(arithmetic, 8, read, outs)
    assert reads == [0, 1, 2]


def test_an_empty_block_is_no_trouble(torch_kernel):
    dtype = BY_NAME["bfloat16"]
    arithmetic = Arithmetic((dtype,) * 3, ROWS, "float32", dtype)
    for kernel in (torch_kernel(arithmetic, 8), cpu_kernel(arithmetic, 8)):
        _, finite = run(kernel, arithmetic, [np.empty(0, np.uint8)] * 3, 0)
        assert all(finite)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(RequestError, match="'nonsense' is no device"):
        check_device("nonsense")
    assert check_device("cpu").type == "cpu"
