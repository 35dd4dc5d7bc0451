"""8-bit floats round to the nearest, by brute force."""

import numpy as np
import pytest
from kernel_chunks import SMALL

from swavg.engine.kernels.floats import narrow
from swavg.engine.kernels.tables import table


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_rounding_finds_the_nearest(dtype):
    rng = np.random.default_rng(2)
    codes = table(dtype)
    finite = np.unique(codes.widen[np.isfinite(codes.widen)].astype(np.float64))
    ties = (finite[1:] + finite[:-1]) / 2
    spread = rng.uniform(finite[0], finite[-1], 5000)
    values = np.concatenate([finite, ties, spread, spread / 64]).astype(np.float32)
    values = values[(values > codes.low) & (values < codes.high)]
    out = np.empty(values.size, np.uint8)
    assert narrow(values, dtype, out)
    rounded = codes.widen[out].astype(np.float64)
    distances = np.abs(values.astype(np.float64)[:, None] - finite[None, :])
    np.testing.assert_array_equal(np.abs(rounded - values), distances.min(axis=1))


@pytest.mark.parametrize("dtype", SMALL, ids=str)
def test_a_tie_goes_to_the_even_code(dtype):
    if dtype.name == "float8_e8m0fnu":
        # No fraction bits: its ties follow ml_dtypes.
        tie = np.float32([1.5])
        expected = tie.astype(dtype.numpy()).view(np.uint8)[0]
    else:
        tie = table(dtype).widen[1:2] / 2 + table(dtype).widen[2:3] / 2
        expected = 2
    out = np.empty(1, np.uint8)
    narrow(tie, dtype, out)
    assert out[0] == expected
