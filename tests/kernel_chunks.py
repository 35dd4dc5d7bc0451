"""Chunks of random values, and a kernel run over them."""

import numpy as np

from swavg.dtypes import BY_NAME
from swavg.engine.kernels.base import Arithmetic, Terms
from swavg.engine.kernels.cpu import CpuKernel
from swavg.engine.kernels.floats import limits
from swavg.engine.kernels.tables import table

FLOATS = [dtype for dtype in BY_NAME.values() if dtype.kind == "float" and dtype.bits >= 8]
SMALL = [dtype for dtype in FLOATS if dtype.bits == 8]
WIDE = [dtype for dtype in FLOATS if dtype.bits > 8]


def bytes_of(array):
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1)


def random_chunk(rng, dtype, count, output=None):
    """Bytes of values whose sums stay inside the dtype (and that of the output)."""
    if dtype.name == "float8_e8m0fnu":
        return rng.integers(100, 140, count, dtype=np.uint8)
    if dtype.bits == 8:
        finite = np.flatnonzero(np.isfinite(table(dtype).widen)).astype(np.uint8)
        room = min(limits(each)[1] for each in (dtype, output or dtype)) / 4
        return rng.choice(finite[np.abs(table(dtype).widen[finite]) < room], count)
    scale = 10.0 ** rng.integers(-7, 3, count)
    return bytes_of((rng.standard_normal(count) * scale).astype(dtype.numpy()))


def uniform(n):
    return Terms(tuple(range(n)), (1 / n,) * n, uniform=True)


def weighted(*weights):
    return Terms(tuple(range(len(weights))), weights, uniform=False)


def reader(chunks):
    def read(index, buffer):
        buffer[:] = chunks[index].data

    return read


def run(kernel, arithmetic, chunks, count):
    """The bytes of each row and whether the kernel called them finite."""
    outs = [np.zeros(arithmetic.output.nbytes(count), np.uint8) for _ in arithmetic.rows]
    finite = kernel.weighted_sums(arithmetic, count, reader(chunks), [out.data for out in outs])
    return outs, list(finite)


def cpu_kernel(arithmetic, count):
    return CpuKernel(count, 8, 8, len(arithmetic.rows))


def mean_of(chunks, dtype, count):
    """The bytes of the mean and whether it is finite."""
    arithmetic = Arithmetic(
        (dtype,) * len(chunks), (uniform(len(chunks)),), dtype.accumulator, dtype
    )
    outs, finite = run(cpu_kernel(arithmetic, count), arithmetic, chunks, count)
    return outs[0], finite[0]
